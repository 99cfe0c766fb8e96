# The suite with all that its tests need, on CPUs or NVIDIA GPUs (PyPI's torch carries CUDA; the host needs a driver):
#   docker build -t flash-grpo .
#   docker run --rm -v "$PWD/runs:/suite/runs" flash-grpo                     make demo
#   docker run --rm --gpus all -v "$PWD/runs:/suite/runs" flash-grpo python train.py
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /suite
# Dependencies first, so that a change of the code does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY flash_grpo/__init__.py flash_grpo/__init__.py
RUN mkdir -p analysis hydra_plugins ablations sweeps slurm && make install

COPY . .
ENV PATH=/suite/.venv/bin:$PATH HF_HUB_OFFLINE=1 MPLBACKEND=Agg
CMD ["make", "demo"]
