"""This command has moved: `python -m flash_grpo.tiny_world.pretrain`."""

import sys

if __name__ == "__main__":
    print(
        "error: python -m flash_grpo.policies.pretrain_tiny is now python -m flash_grpo.tiny_world.pretrain",
        file=sys.stderr,
    )
    sys.exit(2)
