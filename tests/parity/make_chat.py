"""Renders conversations with a published chat template and writes them as a fixture.

    python make_chat.py CHAT_TEMPLATE.jinja TOKENIZER_FOLDER OUT.json       (needs jinja2 and tokenizers)

The template is the chat_template.jinja of a Qwen3-VL checkpoint; jinja2 is set up as transformers does it. "ids" are the
reference's ids of the rendered string, with one pad for each placeholder.
"""
import json
import sys

import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment


def user(*parts):
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else [part(p) for p in parts]}


def part(p):
    return {"image": {"type": "image", "image": "x"}, "video": {"type": "video", "video": "x"}, "url": {"type": "image_url", "image_url": {"url": "x"}}}.get(
        p[1:], {"type": "text", "text": p}) if p.startswith("@") else {"type": "text", "text": p}


def bot(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def tool(*parts):
    return {**user(*parts), "role": "tool"}


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich", "days": 3, "x": [1.5, 1e-7, 1e16, 2.0, None, True]}}}
CALL2 = {"name": "f", "arguments": "{\"raw\":  1}"}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Wetter \u5929\u6c17 <&> \"x\"\n\t\u0001", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "limit": {"minimum": -0.5, "maximum": 1e22}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "f", "parameters": {}}}]
THOUGHT = "<think>\nHm.\nTwo lines.\n</think>\n\nAnswer."
CASES = {
    "text": ([user("Hello")], {}),
    "string_and_parts": ([system([{"type": "text", "text": "S1"}, {"type": "text", "text": " S2"}]), user("a", "b")], {}),
    "images": ([user("A: ", "@image", " B: ", "@url", " Differences?")], {}),
    "image_first": ([user("@image", "Describe.")], {}),
    "image_then_newlines": ([user("@image", "\n\nDescribe.\n", "@video", "\n")], {}),
    "vision_id": ([user("@image", "@video", "@image", "x"), bot("y"), user("@image", "@video", "z")], {"vision_id": True}),
    "vision_id_tool_image": ([user("@image", "x"), bot("", tool_calls=[CALL]), tool("@image", "here"), bot("ok"), user("@image")], {"vision_id": True}),
    "multi_turn": ([user("@image", "Who?"), bot([part("A cat.")]), user("Colour?")], {}),
    "late_system": ([user("a"), system("late"), user("b")], {}),
    "no_generation_prompt": ([user("x"), bot("y")], {"gen": False}),
    "tools": ([system("S"), user("Weather?"), bot("", tool_calls=[CALL]), tool("{\"t\": 31}"), tool("{\"t\": 32}"), bot("Warm."), user("And now?")], {"tools": TOOLS}),
    "tools_no_system": ([user("Weather?")], {"tools": TOOLS}),
    "calls_with_text": ([user("x"), bot("ok", tool_calls=[CALL2, CALL]), tool("r"), user("y")], {"tools": TOOLS}),
    "calls_empty_part": ([user("x"), bot([part("")], tool_calls=[CALL2]), tool("r")], {}),
    "calls_no_parts": ([user("x"), bot([], tool_calls=[CALL2]), tool("r")], {}),
    "tool_images": ([user("x"), bot("", tool_calls=[CALL2]), tool("@image", "after"), tool("plain")], {}),
    "empty_system": ([system(""), user("x")], {}),
    "empty_user": ([user("")], {}),
    "think_in_earlier_turn": ([user("a"), bot(THOUGHT), user("b")], {}),
    "think_in_last_turn": ([user("a"), bot(THOUGHT)], {"gen": False}),
    "think_key_earlier": ([user("a"), bot("Answer.", reasoning_content="Hm."), user("b")], {}),
    "think_key_last": ([user("a"), bot("\n\nAnswer.", reasoning_content="\n\nHm.\n")], {"gen": False}),
    "think_empty_last": ([user("a"), bot("Answer.")], {}),
    "think_tool_steps": ([user("a"), bot("<think>\nfirst\n</think>\n\n", tool_calls=[CALL2]), tool("r1"), bot("t", reasoning_content="second", tool_calls=[CALL]),
                          tool("r2"), bot("no thoughts", tool_calls=[CALL2]), tool("r3")], {"tools": TOOLS}),
    "think_tool_steps_then_user": ([user("a"), bot("<think>\nfirst\n</think>\n\n", tool_calls=[CALL2]), tool("r1"), bot("<think>x</think>done"), user("b")], {}),
    "think_user_tool_response": ([user("a"), bot("<think>\nq\n</think>\n\nz", tool_calls=[CALL2]), user("<tool_response>\nr\n</tool_response>")], {}),
    "think_user_tool_response_parts": ([user("a"), bot("<think>\nq\n</think>\n\nz"), user("<tool_resp", "onse>r</tool_response>")], {}),
    "think_twice": ([user("a"), bot("<think>one</think>mid<think>\n\ntwo\n\n</think>\n\n\nend")], {"gen": False}),
    "think_unopened": ([user("a"), bot("thought\n</think>\nend")], {"gen": False}),
    "think_unclosed": ([user("a"), bot("<think>thought\nend")], {"gen": False}),
    "think_in_parts": ([user("a"), bot([part("<think>\nab"), part("cd\n</th"), part("ink>\n\nend")])], {"gen": False}),
    "think_only_tool_response_users": ([user("<tool_response>r</tool_response>"), bot("<think>q</think>z")], {"gen": False}),
    "think_empty_reasoning": ([user("a"), bot("x", reasoning_content=""), user("b"), bot("y", reasoning_content="")], {}),
    "system_image": ([system([part("@image"), part("S")]), user("@image", "x")], {"vision_id": True}),
    "assistant_image": ([user("@image", "x"), bot([part("<think>"), part("@image"), part("</think>y"), part("@image")]), user("@image")], {"vision_id": True}),
    "think_image_last": ([user("x"), bot([part("@image"), part("<think>\nq"), part("@image"), part("\n</think>\n\n"), part("@image"), part("end")])], {"gen": False}),
    "combining_mark_first": ([user("\u0301x")], {}),
    "newlines_first": ([user("\n\nfoo"), bot("\n bar "), user(" \n")], {}),
    "space_first": ([user("  indented"), bot("'s")], {}),
}


def main():
    template_path, folder, out = sys.argv[1:4]
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
    template = env.from_string(open(template_path, encoding="utf-8").read())
    tok = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    fixture = {}
    for name, (messages, options) in CASES.items():
        text = template.render(messages=messages, tools=options.get("tools"), add_generation_prompt=options.get("gen", True),
                               add_vision_id=options.get("vision_id", False))
        fixture[name] = {"messages": messages, "options": options, "text": text, "ids": tok.encode(text, add_special_tokens=False).ids}
    rows = [json.dumps(k) + ": " + json.dumps(v, ensure_ascii=True) for k, v in fixture.items()]
    open(out, "w").write("{\n" + ",\n".join(rows) + "\n}\n")
    print(len(fixture), "conversations")


if __name__ == "__main__":
    main()
