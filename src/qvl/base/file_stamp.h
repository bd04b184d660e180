// Names for "this very file, unchanged" and "this very program on this very processor", cheap enough to make at every
// start: what results that outlive a process are filed under.
#pragma once

#include <sys/stat.h>

#include <string>

namespace qvl {

// Size, time of the last change of contents and of the last change of the inode. The last cannot be set back, so
// writing into a file and restoring its times still gives another stamp; so does a copy.
std::string file_stamp(const struct stat& status);

// SHA-256 over the running program and every library it has loaded by now, and over what the system tells about the
// processor (libraries choose code by it). Another build, another version of a library or another kind of processor has
// another one; a copy of the program has not. A program or library counts by the identifier that the linker made of its
// contents (NT_GNU_BUILD_ID), or by its file's stamp where it has none.
std::string program_stamp();

}  // namespace qvl
