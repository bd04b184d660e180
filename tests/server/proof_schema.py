"""Answers about pictures held to a JSON schema: all of them must be valid, sampled ones too."""

import concurrent.futures
import json
import random
import re

import jsonschema

from harness import Failure, ask, check, eval_pictures

ABOUT = "schema-constrained answers with pictures are valid, every one"


def strict(properties, **more):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False, **more}


WORD = {"type": "string", "maxLength": 20}
COLOR = {"enum": ["red", "orange", "yellow", "green", "blue", "purple", "pink", "black"]}
BOX = strict({"bbox_2d": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "minItems": 4, "maxItems": 4},
              "label": WORD})
SCHEMAS = {
    "number": strict({"count": {"type": "integer", "minimum": 0, "maximum": 9}}),
    "colors": strict({"colors": {"type": "array", "items": COLOR, "minItems": 1, "maxItems": 4}}),
    "boxes": strict({"boxes": {"type": "array", "items": BOX, "minItems": 1, "maxItems": 3}}),
    "nested": strict({"a": strict({"b": strict({"c": {"type": "boolean"}, "d": {"type": "null"}}), "word": WORD})}),
    "either": strict({"it": {"anyOf": [COLOR, {"type": "integer", "minimum": -5, "maximum": 5}, {"type": "boolean"}]}}),
    "constant": strict({"kind": {"const": "shape"}, "color": COLOR}),
    "pattern": strict({"code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}),
    "date": strict({"day": {"type": "string", "format": "date"}}),
    "fraction": strict({"share": {"type": "number", "minimum": 0, "maximum": 1}}),
    "optional": {"type": "object", "properties": {"a": WORD, "b": COLOR, "c": {"type": "boolean"}}, "required": ["b"],
                 "additionalProperties": False},
    "tuple": strict({"pair": {"type": "array", "prefixItems": [COLOR, {"type": "integer", "minimum": 0, "maximum": 99}],
                              "items": False, "minItems": 2}}),
    "shared": strict({"left": {"$ref": "#/$defs/shape"}, "right": {"$ref": "#/$defs/shape"}},
                     **{"$defs": {"shape": strict({"color": COLOR, "size": {"enum": ["small", "large"]}})}}),
    "tree": {"$ref": "#/$defs/node", "$defs": {"node": strict({
        "name": {"type": "string", "maxLength": 5},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}}), "leaf": strict({"name": COLOR})}},
    "unicode": strict({"größe": {"enum": ["klein", "groß", "大きい"]}, "weiß": {"type": "boolean"}}),
    "list": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 2, "maxItems": 3},
    "escapes": strict({"text": {"enum": ['a "quoted" word', "back\\slash", "line\nbreak", "tab\t", "é"]}}),
}


# As RFC 3339 writes a date. Which months have 31 days no grammar of characters is asked to know.
FORMATS = jsonschema.FormatChecker(formats=())
FORMATS.checks("date")(lambda value: re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", value) is not None)


def server_options(options):
    return ["--queue", "64"]


def run(server, options):
    wanted = options.requests or 200
    pictures = eval_pictures()
    random_ = random.Random(options.seed)
    names = list(SCHEMAS)

    def one(i):
        name = names[i % len(names)]
        fields = dict(temperature=random_.choice([0, 0.7, 1.0, 1.5]), seed=i, max_tokens=600,
                      response_format={"type": "json_schema", "json_schema": {"name": name, "strict": i % 2 == 0, "schema": SCHEMAS[name]}})
        shown = random_.sample(pictures, 1 + i % 2)
        reply = server.chat([ask("Fill in the form.", *shown)], timeout=240, **fields)
        choice = reply["choices"][0]
        try:
            if choice["finish_reason"] != "stop":
                raise Failure(f"finish_reason {choice['finish_reason']}")
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS[name],
                                format_checker=FORMATS)
            return None, reply["usage"]["completion_tokens"]
        except (Failure, json.JSONDecodeError, jsonschema.ValidationError) as error:
            return f"{name}, request {i}: {type(error).__name__}: {str(error)[:200]}: {choice['message']['content'][:300]!r}", 0

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(wanted)))
    wrong = [problem for problem, _ in results if problem]
    check(not wrong, f"{len(wrong)} of {wanted} are not valid:\n    " + "\n    ".join(wrong[:10]))
    tokens = sum(t for _, t in results)
    return [f"{wanted} of {wanted} valid, {len(SCHEMAS)} schemas, {len(pictures)} pictures, {tokens} tokens"]
