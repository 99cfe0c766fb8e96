"""`python train.py`: one run. `python train.py -m sweeps=demo`: a sweep. `python train.py --help`: everything else."""

import sys

if __name__ == "__main__":
    try:
        from flash_grpo.cli import main

        main()
    except KeyboardInterrupt:  # in the first second, while libraries are imported
        print("interrupted: nothing was done yet", file=sys.stderr)
        sys.exit(130)
