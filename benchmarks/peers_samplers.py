"""The peer side of samplers.py: times k-diffusion's samplers and diffusers' schedulers on request.

Reads lines "PEER NAME STEPS", answers with seconds; runs in the peers' environment (see tests/references/README.md).
"""

import math
import pathlib
import sys
import time
import types

import diffusers as hf
import torch

for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "clip", "cleanfid", "wandb"):
    sys.modules.setdefault(name, types.ModuleType(name))  # imported by k-diffusion, not used by its samplers
package = types.ModuleType("k_diffusion")  # its __init__ pulls in training code
root = next(p for p in map(pathlib.Path, sys.path) if (p / "k_diffusion").is_dir())
package.__path__ = [str(root / "k_diffusion")]
sys.modules["k_diffusion"] = package
from k_diffusion import sampling as kd  # noqa: E402

torch.set_num_threads(2)
SHAPE = (64, 3, 32, 32)
X = torch.randn(SHAPE)


def model(x, sigma, **kwargs):
    """The trivial denoiser; k-diffusion passes one sigma per row, all equal."""
    return x * (0.25 / (0.25 + sigma[0] ** 2))


def noise(sigma, sigma_next):
    """Plain noise: k-diffusion's default for its SDE samplers is a Brownian tree, which costs far more."""
    return torch.randn(SHAPE)


K = {
    "euler": (kd.sample_euler, {}),
    "euler_ancestral": (kd.sample_euler_ancestral, {"noise_sampler": noise}),
    "heun": (kd.sample_heun, {}),
    "stochastic_heun": (kd.sample_heun, {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}),
    "dpm_2": (kd.sample_dpm_2, {}),
    "dpm_2_ancestral": (kd.sample_dpm_2_ancestral, {"noise_sampler": noise}),
    "lms": (kd.sample_lms, {}),
    "dpmpp_2m": (kd.sample_dpmpp_2m, {}),
    "dpmpp_2s_ancestral": (kd.sample_dpmpp_2s_ancestral, {"noise_sampler": noise}),
    "dpmpp_sde": (kd.sample_dpmpp_sde, {"noise_sampler": noise}),
    "dpmpp_2m_sde": (kd.sample_dpmpp_2m_sde, {"noise_sampler": noise}),
    "dpmpp_3m_sde": (kd.sample_dpmpp_3m_sde, {"noise_sampler": noise}),
}
BETAS = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
MULTI = hf.DPMSolverMultistepScheduler
HF = {
    "ddim": lambda: hf.DDIMScheduler(**BETAS, clip_sample=False),
    "ddpm": lambda: hf.DDPMScheduler(**BETAS, clip_sample=False),
    "euler": lambda: hf.EulerDiscreteScheduler(**BETAS),
    "euler_ancestral": lambda: hf.EulerAncestralDiscreteScheduler(**BETAS),
    "heun": lambda: hf.HeunDiscreteScheduler(**BETAS),
    "lms": lambda: hf.LMSDiscreteScheduler(**BETAS),
    "pndm": lambda: hf.PNDMScheduler(**BETAS, skip_prk_steps=True),
    "ipndm": lambda: hf.IPNDMScheduler(),
    "deis": lambda: hf.DEISMultistepScheduler(**BETAS, solver_order=3),
    "dpmpp_2m": lambda: MULTI(**BETAS, solver_order=2),
    "dpmpp_3m": lambda: MULTI(**BETAS, solver_order=3),
    "dpmpp_2m_sde": lambda: MULTI(**BETAS, solver_order=2, algorithm_type="sde-dpmsolver++"),
    "dpm_solver": lambda: hf.DPMSolverSinglestepScheduler(**BETAS, solver_order=3),
    "unipc": lambda: hf.UniPCMultistepScheduler(**BETAS),
    "sa_solver": lambda: hf.SASolverScheduler(**BETAS, tau_func=lambda t: 1.0),
}


def seconds(peer, name, steps):
    """One run."""
    if peer == "k-diffusion":
        run, options = K[name]
        sigmas = kd.get_sigmas_karras(steps, 0.002, 80.0)
        start = time.perf_counter()
        run(model, X * 80.0, sigmas, disable=True, **options)
        return time.perf_counter() - start
    scheduler = HF[name]()
    scheduler.set_timesteps(steps)
    x = X.clone()
    start = time.perf_counter()
    for t in scheduler.timesteps:
        x = scheduler.step(scheduler.scale_model_input(x, t) * 0.5, t, x).prev_sample  # as cheap a model as can be
    return time.perf_counter() - start


if __name__ == "__main__":
    print(f"{torch.__version__} {hf.__version__} {sorted(K)} {sorted(HF)} {math.prod(SHAPE)}", flush=True)
    for line in sys.stdin:
        peer, name, steps = line.split()
        with torch.no_grad():
            print(seconds(peer, name, int(steps)), flush=True)
