"""The same conversation with everything remembered and with nothing: five pictures in every order, ten turns, the same
tokens."""

import concurrent.futures
import itertools

from harness import ROOT, Server, ask, check, equal, eval_pictures

ABOUT = "cold and cached answers have the same tokens, five pictures in every order, ten turns"

# Turns 1 to 5 bring a picture each; then only questions.
QUESTIONS = ["Describe this image.", "How many shapes are there?", "What does it say?", "What differs?", "Which picture has more shapes?",
             "What colour is the circle?", "Where is the red circle?", "Describe this image.", "Is there a red star?", "Hello"]


def conversation(order, server, cold, kept):
    """Tokens of the ten answers. `kept`: answers by conversation, where they are computed from nothing anyway."""
    messages, answers, names = [], [], ()
    for turn, question in enumerate(QUESTIONS):
        names = names + ((order[turn].name if turn < 5 else "") + "|" + question,)
        messages.append(ask(question, order[turn]) if turn < 5 else ask(question))
        if cold and names in kept:
            text, tokens = kept[names]
        else:
            if cold:
                # The one slot there is now holds another conversation.
                server.chat([{"role": "system", "content": "Be brief."}, ask("Hello")], max_tokens=1)
            reply = server.chat(messages, timeout=240, temperature=0, max_tokens=24, logprobs=True)
            choice = reply["choices"][0]
            text, tokens = choice["message"]["content"], tuple(bytes(t["bytes"]) for t in choice["logprobs"]["content"])
            cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            if cold:
                check(cached < 8, f"turn {turn + 1} found more than the template's first tokens", cached, names)
                kept[names] = text, tokens
            elif turn > 0:
                check(cached > 0, f"turn {turn + 1} was computed from the beginning", names)
        answers.append(tokens)
        messages.append({"role": "assistant", "content": text})
    return answers


def server_options(options):
    return ["--queue", "64"]


# One slot, which is given other work before every turn; a process for each order, so that no picture is known.
COLD = ["--slots", "1", "--image-memory", "off"]


def run(server, options):
    pictures = [p for p in eval_pictures() if p.name in ("000.png", "003.png", "015.png", "036.png", "044.png")]
    equal(len(pictures), 5, "pictures")
    orders = list(itertools.permutations(pictures))
    # Evenly from all, so that a part of them begins with every picture.
    orders = orders[::max(1, len(orders) // options.orderings)][:options.orderings]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        cached = list(pool.map(lambda o: conversation(o, server, False, None), orders))
    kept = {}
    for order, answers in zip(orders, cached):
        cold_server = Server(options.binary, COLD + (["--threads", str(options.threads)] if options.threads else []))
        try:
            cold = conversation(order, cold_server, True, kept)
            cold_server.stop()
        finally:
            cold_server.kill()
        for turn, (a, b) in enumerate(zip(cold, answers)):
            equal(b, a, f"tokens of turn {turn + 1}, pictures {[p.name for p in order]}")
    tokens = sum(len(t) for answers in cached for t in answers)
    return [f"{len(orders)} orders of 5 pictures, 10 turns: {len(orders) * 10} cached answers ({tokens} tokens) equal the "
            f"{len(kept)} computed from nothing"]
