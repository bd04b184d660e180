"""Draws the pictures of examples/, chosen so that the small model answers the usual questions about them right.

    python examples.py FOLDER
"""
import os
import sys

from PIL import Image

import draw
from draw import COLOURS, Scene, Shape, Text


def shape(kind, colour, x, y, s):
    return Shape(kind, colour, COLOURS[colour], x, y, s)


def text(string, font, size, colour, x, y):
    return Text(string, font, size, colour, COLOURS[colour], x, y)


def main(out):
    os.makedirs(out, exist_ok=True)
    save = lambda sc, name, **kw: Image.fromarray(draw.render(sc)).save(f"{out}/{name}", **kw)
    light = (246, 248, 252)
    save(Scene(160, 192, light, [shape("circle", "red", 21, 24, 44), shape("square", "blue", 66, 93, 46),
                                 shape("circle", "green", 98, 14, 42), shape("star", "yellow", 132, 90, 48)]), "shapes.png")
    save(Scene(96, 160, (252, 250, 240), [], [text("QVL", 3, 32, "blue", 42, 33)]), "text.png")
    first = [shape("triangle", "green", 12, 20, 44), shape("square", "red", 70, 60, 42)]
    save(Scene(128, 128, (250, 250, 250), first), "first.png")
    save(Scene(128, 128, (250, 250, 250), first[:1]), "second.png")
    save(Scene(256, 320, (238, 244, 248), [shape("diamond", "orange", 30, 50, 84), shape("circle", "blue", 196, 120, 92)],
               [text("OPEN", 1, 42, "black", 150, 40)]), "photo.jpg", quality=92)
    save(Scene(224, 224, (244, 240, 232), [shape("cross", "pink", 14, 30, 50), shape("circle", "black", 80, 130, 60),
                                           shape("square", "orange", 150, 40, 56)]), "large.png")


if __name__ == "__main__":
    main(sys.argv[1])
