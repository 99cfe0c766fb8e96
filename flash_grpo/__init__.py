"""Benchmark and ablation suite for GRPO on video diffusion models."""
