"""The command kpod-jax, also as python -m kpod_jax: Ctrl-C ends it cleanly from the start."""

from kpod_jax.utils import signals


def command() -> None:
    """Entry point of the command; imports the program, which takes a second or more."""
    signals.exit_on_interrupt()
    from kpod_jax import main

    main.command()


if __name__ == "__main__":
    command()
