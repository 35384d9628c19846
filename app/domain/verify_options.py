"""What the verifier can be asked, apart from what answers: a command line that only names it loads no more. Standard library only."""

from typing import NamedTuple

DESCRIPTION = "Check an evidence bundle offline. The exit code is 0 where no check failed."


class Option(NamedTuple):
    """An option of the command. Without `is_flag` it takes a file."""

    name: str
    help: str
    is_flag: bool = False
    is_repeatable: bool = False


BUNDLE_HELP = "An evidence bundle."
OPTIONS = (
    Option("adapter", "The adapter's zip, to be checked against it."),
    Option("data", "The training file, to be checked against it."),
    Option("parent", "The bundle of the job whose adapter this one went on from."),
    Option("policy", "The trust policy: whose signature must be there. From elsewhere than the bundle."),
    Option(
        "receipt",
        "A receipt of the job, or a checkpoint of the log, kept from before: the bundle must not contradict it."
        " Can be given several times.",
        is_repeatable=True,
    ),
    Option(
        "rows",
        "Rows of the training file as tokens, to be held against their digests on record; needs --key.",
    ),
    Option("key", "The dataset's key, 64 hex digits, under which these digests were made."),
    Option("require-ended", "Fail unless the job has ended, so that nothing can be cut off.", is_flag=True),
    Option("json", "Print JSON, for programs.", is_flag=True),
)


class UsageError(Exception):
    """The command line is wrong: it names a file that is not there, or cannot be read as what it is given as."""
