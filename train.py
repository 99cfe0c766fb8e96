"""`python train.py`: one run. `python train.py -m sweeps=demo`: a sweep. `python train.py --help`: everything else."""

from flash_grpo.cli import main

if __name__ == "__main__":
    main()
