"""
Entry point of the `vip2clip` command.

It is outside the package because `import vip2clip_hf` registers the model with transformers and so imports torch. The
package sees that this module is loaded and skips that: `vip2clip --help` answers at once, and commands import what
they need.
"""


def main():
    from vip2clip_hf.cli import main as run

    run()
