// The Markdown parser and the sanitiser, from npm (scripts/lib/page.sh). A build without them has `libraries = null` here
// (cmake/embed.cmake), and answers are plain text.
import { Lexer, Marked } from './third_party/marked.js';
import DOMPurify from './third_party/purify.js';

export const libraries = { DOMPurify, Lexer, Marked };
