"""The exception tree of regraft; every error that a user can cause derives from `RegraftError`.

```
RegraftError                exit 1   the work failed
├── UsageError              exit 2   an option, pass, operator or pipeline that does not exist
├── InputError              exit 2   a model or sample file that cannot be used as it is
│   ├── TypeInferenceError  exit 2   an operator applied to operands that its definition forbids
│   ├── VerifyError         exit 2   IR that breaks a structural rule
│   └── ParseError          exit 2   text IR that does not parse (line and column)
├── UnsupportedError        exit 1   valid input that a backend or pass cannot take
├── CheckError              exit 3   a result that left its tolerance
└── TargetError             exit 4   a requested target that was not reached
```
"""

from __future__ import annotations

from typing import ClassVar


class RegraftError(Exception):
    """Base of all errors reported to users.

    Args:
        message: What is wrong and where, values quoted in backticks, no final period.
        hint: What to do next; printed on its own line as `hint: …`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UsageError(RegraftError):
    """A name or option that does not exist.

    Cause: `--passes fuze`. Fix: use the name that the error suggests.
    """

    exit_code = 2


class InputError(RegraftError):
    """A file or sample that cannot be used as it is.

    Cause: a truncated protobuf, a missing external-data file, a sample of the wrong shape.
    Fix: the message names the file and the place; export or copy it again.
    """

    exit_code = 2


class TypeInferenceError(InputError):
    """An operator applied to operands that its definition forbids.

    Cause: `matmul` of `f32[2, 3]` and `f32[4, 5]`. Fix: correct the operand that is named.
    """


class VerifyError(InputError):
    """IR that breaks a structural rule; lists all problems found at once.

    Cause: a value used before it is defined. Fix: the problem's own hint.
    """


class ParseError(InputError):
    """Text IR that does not parse; carries the place.

    Cause: a missing `}` in a `.rg` file. Fix: the line and column are in the message.
    """

    def __init__(self, message: str, *, line: int, column: int, hint: str | None = None) -> None:
        super().__init__(f"line {line}, column {column}: {message}", hint=hint)
        self.line = line
        self.column = column


class UnsupportedError(RegraftError):
    """Valid input that a backend, a pass or an evaluator cannot take.

    Cause: an opaque operator of another framework sent to ONNX Runtime.
    Fix: choose another target, or give a plugin that lowers the operator.
    """


class CheckError(RegraftError):
    """A result that left its tolerance; nothing was written.

    Cause: a rule or pass changed what the model computes. Fix: the message names it, or does so
    with `--check=each`; leave it out of the pipeline, and report it with the reproducer folder.
    """

    exit_code = 3


class TargetError(RegraftError):
    """A requested target (size, latency, drop) that was not reached.

    Fix: the message names the nearest result and the node that stopped it.
    """

    exit_code = 4
