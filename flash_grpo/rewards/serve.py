"""This command has moved: `python -m flash_grpo.serve`."""

import sys

if __name__ == "__main__":
    print("error: python -m flash_grpo.rewards.serve is now python -m flash_grpo.serve", file=sys.stderr)
    sys.exit(2)
