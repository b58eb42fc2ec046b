"""Errors of the Python API name its arguments, not the options of the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from trtq.errors import TrtqError

Function = TypeVar("Function", bound=Callable[..., Any])

# Words of a sentence that follow an option; any other word is its value.
_SENTENCE = (
    "above and as do does for from gives has have in is it means name names needs of or out says "
    "text than that the there to too was where with would write"
)
_OPTION = re.compile(
    r"(?P<command>\btrtq [a-z][a-z-]*(?: [^\s,;]+)*)|"
    r"--(?P<name>[a-z][a-z-]*[a-z])(?: (?!\()(?P<value>[^\s;]*[^\s;,.):]))?"
)
_REPEATED = re.compile(r"(\b(\w+)=\{[^{}]*)\} \2=\{")
_ARGUMENTS = {"preset": "preprocess", "for": "for_"}  # options whose argument has another name


def python_words(function: Function) -> Function:
    """Let the errors of a function speak of arguments.

    Specs keep the words of the command line, which runs them, too.

    Errors of a call whose first argument is a spec are left as they are.
    """

    @functools.wraps(function)
    def spoken(*args: Any, **given: Any) -> Any:
        try:
            return function(*args, **given)
        except TrtqError as exc:
            if not (args and type(args[0]).__module__.startswith("trtq.specs")):
                exc.reword(as_arguments)
            raise

    return cast("Function", spoken)


def as_arguments(text: str) -> str:
    """Return a text with arguments in place of options; commands are not changed.

    >>> as_arguments("Give --input-size CxHxW, or --data IMAGES")
    'Give input_size=(C, H, W), or data=IMAGES'
    >>> as_arguments("Use --metric l2, or leave --min-accuracy out")
    'Use metric="l2", or leave min_accuracy out'
    >>> as_arguments("Check --model-arg (num_classes?), or give --device cuda: each takes its own")
    'Check model_arg (num_classes?), or give device="cuda": each takes its own'
    >>> as_arguments("--dynamic images=batch,3,height:64..1280")
    'dynamic={"images": ["batch", 3, "height"]}, ranges={"height": SizeRange(least=64, most=1280)}'
    >>> as_arguments("--dynamic a=batch,3 --dynamic b=batch,4 --dynamic c=batch")
    'dynamic={"a": ["batch", 3], "b": ["batch", 4], "c": ["batch"]}'
    """
    words, joined = _OPTION.sub(_argument, text), 1
    while joined:  # an option that is given several times is one argument
        words, joined = _REPEATED.subn(r"\1, ", words)
    return words


def _argument(match: re.Match[str]) -> str:
    if match["command"]:
        return match[0]
    option, value = match["name"], match["value"]
    name = _ARGUMENTS.get(option, option.replace("-", "_"))
    if value is None or value in _SENTENCE.split():
        return name + ("" if value is None else f" {value}")
    if option == "dynamic":
        return _dynamic(value)
    if option == "input":
        return f'example={{"{value.partition("=")[0]}": tensor}}'
    if option == "input-size":
        return f"input_size=({', '.join(value.split('x'))})"
    key, equals, rest = value.partition("=")
    return f'{name}={{"{key}": {_literal(rest)}}}' if equals else f"{name}={_literal(value)}"


def _literal(value: str) -> str:
    """Return a value as Python writes it; a placeholder such as DIR remains."""
    if re.fullmatch(r"-?\d+(\.\d+)?|[A-Z_]+", value):
        return value
    return f'"{value}"'


def _dynamic(value: str) -> str:
    name, _, axes = value.partition("=")
    sizes, ranges = list[str](), list[str]()
    for axis in axes.split(","):
        own, _, limits = axis.partition(":")
        sizes.append(own if own.isdecimal() else f'"{own}"')
        match = re.fullmatch(r"(\d+)\.\.(\d*)(?::(\d+))?", limits)
        if match is not None:
            given = zip(("least", "most", "multiple"), match.groups(), strict=True)
            words = ", ".join(f"{k}={v}" for k, v in given if v)
            ranges.append(f'"{own}": SizeRange({words})')
    more = f", ranges={{{', '.join(ranges)}}}" if ranges else ""
    return f'dynamic={{"{name}": [{", ".join(sizes)}]}}{more}'
