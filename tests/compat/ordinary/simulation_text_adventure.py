"""A state machine, an interpreter for a tiny language, and a Markov chain."""

import random, re

PROGRAM = "++++++++[>++++[>++>+++>+++>+<<<<-]>+>+>->>+[<]<-]>>.>---.+++++++..+++.>>.<-.<.+++.------.--------.>>+."


def brain(code):
    jumps, stack = {}, []
    for at, c in enumerate(code):
        if c == "[":
            stack.append(at)
        elif c == "]":
            jumps[at] = stack.pop()
            jumps[jumps[at]] = at
    tape, at, pointer, out = [0] * 100, 0, 0, ""
    while at < len(code):
        match code[at]:
            case ">":
                pointer += 1
            case "<":
                pointer -= 1
            case "+":
                tape[pointer] = (tape[pointer] + 1) % 256
            case "-":
                tape[pointer] = (tape[pointer] - 1) % 256
            case ".":
                out += chr(tape[pointer])
            case "[" if not tape[pointer]:
                at = jumps[at]
            case "]" if tape[pointer]:
                at = jumps[at]
        at += 1
    return out


DOORS = {("hall", "north"): "kitchen", ("kitchen", "south"): "hall", ("hall", "east"): "garden"}


def walk(commands):
    room = "hall"
    for command in commands:
        room = DOORS.get((room, command), room)
        yield room


def markov(text, n):
    words = re.findall(r"\w+", text)
    chain = {}
    for a, b in zip(words, words[1:]):
        chain.setdefault(a, []).append(b)
    word, out = words[0], []
    for _ in range(n):
        out.append(word)
        word = random.choice(chain.get(word) or words)
    return " ".join(out)


random.seed(3)
print(brain(PROGRAM))
print(list(walk(["north", "up", "south", "east", "east"])))
print(markov("the cat sat on the mat and the dog sat on the cat and the mat", 15))
