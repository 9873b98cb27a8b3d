"""Write samplers.npz: end points of k-diffusion's and diffusers' samplers on an exact two-dimensional mixture.

Runs in an environment of its own (see README.md beside it); the tests need only the file.
"""

import math
import pathlib
import sys
import types

import diffusers as hf
import numpy as np
import torch

for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "clip", "cleanfid", "wandb"):
    sys.modules.setdefault(name, types.ModuleType(name))  # imported by k-diffusion, not used by its samplers
package = types.ModuleType("k_diffusion")  # its __init__ pulls in training code
package.__path__ = [
    str(pathlib.Path(next(p for p in sys.path if (pathlib.Path(p) / "k_diffusion").is_dir())) / "k_diffusion")
]
sys.modules["k_diffusion"] = package
from k_diffusion import sampling as kd  # noqa: E402

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
WEIGHTS = torch.tensor([0.3, 0.7])
MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.25]])
STDS = torch.tensor([0.2, 0.4])
UNIT = torch.tensor([[1.0, -0.4], [-0.7, 1.1], [0.2, 0.05], [-1.3, -0.9]])  # starts, times the first sigma
STEPS = (10, 18, 40)
out: dict[str, np.ndarray] = {"unit": UNIT.numpy()}
GRID: dict[int, np.ndarray] = {}


def denoise(x, sigma):
    """E[x0 | x] where x = x0 + sigma eps."""
    total = STDS**2 + sigma**2
    gap = x[:, None] - MEANS
    log = torch.log(WEIGHTS) - gap.square().sum(-1) / (2 * total) - torch.log(total)
    share = torch.softmax(log, 1)[..., None]
    return (share * (STDS[:, None] ** 2 * x[:, None] + sigma**2 * MEANS) / total[:, None]).sum(1)


def model(x, sigma, **kwargs):
    """What k-diffusion calls: sigma has one entry per row."""
    return torch.cat([denoise(row[None], s) for row, s in zip(x, sigma.expand(len(x)), strict=True)])


def path(sigma, sigma_next):
    """Normalised increment of a fixed function of the clock 1/sigma^2, in place of a Brownian path."""
    rate, phase = torch.tensor([2.3, 1.7]), torch.tensor([0.4, 1.9])

    def at(level):
        tau = 1 / level**2
        return math.sqrt(tau) * torch.sin(rate * math.log(tau) + phase), tau

    (end, late), (begin, early) = at(float(sigma_next)), at(float(sigma))
    return ((end - begin) / math.sqrt(late - early)).expand(len(UNIT), 2)


def k_diffusion():
    """Deterministic samplers, SDE samplers with eta = 0, and with eta = 1 on the path."""
    plain = {
        "euler": (kd.sample_euler, {}),
        "euler_ancestral": (kd.sample_euler_ancestral, {"eta": 0.0}),
        "heun": (kd.sample_heun, {}),
        "dpm_2": (kd.sample_dpm_2, {}),
        "dpm_2_ancestral": (kd.sample_dpm_2_ancestral, {"eta": 0.0}),
        **{f"lms_{k}": (kd.sample_lms, {"order": k}) for k in (1, 2, 3, 4)},
        "dpmpp_2s_ancestral": (kd.sample_dpmpp_2s_ancestral, {"eta": 0.0}),
        "dpmpp_sde": (kd.sample_dpmpp_sde, {"eta": 0.0}),
        "dpmpp_2m": (kd.sample_dpmpp_2m, {}),
        "dpmpp_2m_sde_midpoint": (kd.sample_dpmpp_2m_sde, {"eta": 0.0, "solver_type": "midpoint"}),
        "dpmpp_2m_sde_heun": (kd.sample_dpmpp_2m_sde, {"eta": 0.0, "solver_type": "heun"}),
        "dpmpp_3m_sde": (kd.sample_dpmpp_3m_sde, {"eta": 0.0}),
    }
    noisy = {
        "euler_ancestral": (kd.sample_euler_ancestral, {}),
        "dpm_2_ancestral": (kd.sample_dpm_2_ancestral, {}),
        "dpmpp_2s_ancestral": (kd.sample_dpmpp_2s_ancestral, {}),
        "dpmpp_sde": (kd.sample_dpmpp_sde, {}),
        "dpmpp_2m_sde_midpoint": (kd.sample_dpmpp_2m_sde, {"solver_type": "midpoint"}),
        "dpmpp_2m_sde_heun": (kd.sample_dpmpp_2m_sde, {"solver_type": "heun"}),
        "dpmpp_3m_sde": (kd.sample_dpmpp_3m_sde, {}),
    }
    for n in STEPS:
        full = kd.get_sigmas_karras(n, 0.002, 80.0)
        for end, grid in (("zero", full), ("positive", kd.get_sigmas_karras(n + 1, 0.02, 80.0)[:-1])):
            out[f"sigmas/{end}/{n}"] = grid.numpy()
            for name, (run, options) in plain.items():
                out[f"kdiffusion/{name}/{end}/{n}"] = run(model, UNIT * grid[0], grid, disable=True, **options).numpy()
            for name, (run, options) in noisy.items():
                options = {"eta": 1.0, "noise_sampler": path} | options
                found = run(model, UNIT * grid[0], grid, disable=True, **options)
                out[f"kdiffusion-eta1/{name}/{end}/{n}"] = found.numpy()
    for calls in (9, 10, 11, 18, 40):
        out[f"kdiffusion-fast/{calls}"] = kd.sample_dpm_fast(
            model, UNIT * 80.0, 0.02, 80.0, calls, disable=True
        ).numpy()
    for order in (2, 3):
        rows, counts = [], []
        for row in UNIT * 80.0:  # one at a time: its error is a norm over the batch
            options = dict(order=order, return_info=True, disable=True)
            x, info = kd.sample_dpm_adaptive(model, row[None], 0.02, 80.0, **options)
            rows.append(x)
            counts.append([info["nfe"], info["n_accept"], info["n_reject"]])
        out[f"kdiffusion-adaptive/{order}"] = torch.cat(rows).numpy()
        out[f"kdiffusion-adaptive-calls/{order}"] = np.array(counts)


BETAS = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
LAST = dict(lower_order_final=False, final_sigmas_type="sigma_min")


def schedulers(n):
    """Name, scheduler, and whether its state is divided by alpha (None: EDM's preconditioning)."""
    if 1000 % n == 0:  # otherwise DDIM and PNDM step to levels at which they then are not
        yield "ddim", hf.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing"), True
        yield "pndm", hf.PNDMScheduler(**BETAS, skip_prk_steps=True, timestep_spacing="trailing"), True
    betas = GRID[n] / np.sqrt(1 + GRID[n] ** 2)
    yield "ipndm", hf.IPNDMScheduler(trained_betas=betas), True
    for k in (1, 2, 3):
        yield f"deis_{k}", hf.DEISMultistepScheduler(**BETAS, solver_order=k), True
        for algorithm in ("dpmsolver", "dpmsolver++"):
            short = "eps" if algorithm == "dpmsolver" else "x0"
            options = dict(solver_order=k, algorithm_type=algorithm, **LAST)
            yield f"multi_{short}_{k}", hf.DPMSolverMultistepScheduler(**BETAS, **options), True
            if k < 3:  # its inner point of order 3 is another than the paper's; n = 9 ends with a step of order 1
                yield f"single_{short}_{k}", hf.DPMSolverSinglestepScheduler(**BETAS, **options), True
            if k > 1 and n < 15:  # as it is by default; above 15 steps that changes nothing
                options["lower_order_final"] = True
                yield f"lower_{short}_{k}", hf.DPMSolverMultistepScheduler(**BETAS, **options), True
        for variant in ("bh1", "bh2"):
            for x0 in (True, False):
                options = dict(solver_order=k, solver_type=variant, predict_x0=x0, final_sigmas_type="sigma_min")
                name = f"unipc_{variant}_{'x0' if x0 else 'eps'}_{k}"
                yield name, hf.UniPCMultistepScheduler(**BETAS, **options), True
        options = dict(predictor_order=k, corrector_order=k, tau_func=lambda t: 0.0, lower_order_final=False)
        yield f"sa_{k}", hf.SASolverScheduler(**BETAS, **options), True
        yield f"edm_multi_{k}", hf.EDMDPMSolverMultistepScheduler(solver_order=k, lower_order_final=False), None
    yield "unipc_zero_2", hf.UniPCMultistepScheduler(**BETAS), True
    yield "unipc_late_3", hf.UniPCMultistepScheduler(**BETAS, solver_order=3, **LAST), True
    yield "multi_lower_3", hf.DPMSolverMultistepScheduler(**BETAS, solver_order=3), True
    yield "euler", hf.EulerDiscreteScheduler(**BETAS), False
    yield "heun", hf.HeunDiscreteScheduler(**BETAS), False
    yield "kdpm_2", hf.KDPM2DiscreteScheduler(**BETAS), False
    yield "lms_4", hf.LMSDiscreteScheduler(**BETAS), False


def place(name, scheduler, n):
    """Put the schedulers whose own levels end twice at the same one, or divide steps unevenly, on ours."""
    if name.startswith("single"):
        scheduler.sigmas = torch.tensor(np.geomspace(80.0, 0.02, n + 1), dtype=torch.float32)
    elif name.startswith("sa_"):
        scheduler.sigmas = torch.tensor(GRID[n], dtype=torch.float32)


def level(scheduler, t):
    """Noise level and alpha at which the scheduler wants the estimate."""
    if isinstance(scheduler, hf.IPNDMScheduler):
        index = (scheduler.timesteps == t).nonzero().item()
        alpha = float(scheduler.alphas[index])
        return float(scheduler.betas[index]) / alpha, alpha
    if hasattr(scheduler, "sigmas"):
        inner = isinstance(scheduler, hf.KDPM2DiscreteScheduler) and not scheduler.state_in_first_order
        sigma = float((scheduler.sigmas_interpol if inner else scheduler.sigmas)[scheduler.step_index or 0])
        return sigma, 1 / math.sqrt(1 + sigma**2)
    abar = float(scheduler.alphas_cumprod[int(t)])
    return math.sqrt((1 - abar) / abar), math.sqrt(abar)


def end(scheduler):
    """Noise level and alpha at which the scheduler stops."""
    if isinstance(scheduler, hf.IPNDMScheduler):
        return float(scheduler.betas[-1] / scheduler.alphas[-1]), float(scheduler.alphas[-1])
    if hasattr(scheduler, "sigmas"):
        sigma = float(scheduler.sigmas[-1])
        return sigma, 1 / math.sqrt(1 + sigma**2)
    alpha = math.sqrt(float(scheduler.final_alpha_cumprod))
    return math.sqrt(max(1 - alpha**2, 0)) / alpha, alpha


def run_hf(scheduler, scaled):
    """Drive one scheduler: the noise levels of its calls and the last, and its end, in x = x0 + sigma eps."""
    levels, x = [], None
    for t in scheduler.timesteps:
        sigma, alpha = level(scheduler, t)
        alpha = alpha if scaled else 1.0
        x = UNIT * sigma * alpha if x is None else x
        levels.append(sigma)
        x0 = denoise(x / alpha, sigma)
        output = (x / alpha - x0) / sigma
        if scaled is None:  # the raw output of the network that EDM preconditions
            scheduler.scale_model_input(x, t)
            output = (x0 - 0.25 / (sigma**2 + 0.25) * x) / (0.5 * sigma / math.sqrt(sigma**2 + 0.25))
        elif isinstance(scheduler, hf.IPNDMScheduler):  # it is told v
            output = alpha * output - sigma * alpha * x0
        scheduler.is_scale_input_called = True
        x = scheduler.step(output, t, x).prev_sample
    sigma, alpha = end(scheduler)
    return np.array([*levels, sigma]), (x / (alpha if scaled else 1.0)).numpy()


def diffusers():
    """Every scheduler on its own noise levels."""
    for n in (9, 20, *STEPS):
        GRID[n] = kd.get_sigmas_karras(n + 1, 0.02, 80.0)[:-1].numpy()
        for name, scheduler, scaled in schedulers(n):
            if (n == 9 and not name.startswith("single")) or (n == 20 and name not in ("ddim", "pndm")):
                continue  # 9 is there for an odd number of steps, 20 as a divisor of 1000
            scheduler.set_timesteps(n)
            place(name, scheduler, n)
            levels, found = run_hf(scheduler, scaled)
            assert np.isfinite(found).all(), name
            out[f"diffusers/{name}/{n}"] = found.astype(np.float64)
            out[f"diffusers-sigmas/{name}/{n}"] = levels


def flow():
    """Flow-matching schedulers with a shift of 3; their state is u = (1 - t) x0 + t eps."""
    for n in STEPS:
        for name, scheduler in (
            ("flow_euler", hf.FlowMatchEulerDiscreteScheduler(shift=3.0)),
            ("flow_heun", hf.FlowMatchHeunDiscreteScheduler(shift=3.0)),
        ):
            scheduler.set_timesteps(n)
            times = scheduler.sigmas.double().clone()
            times[0] = 0.995  # at 1 the noise level is infinite
            scheduler.sigmas = times
            u, levels = UNIT * times[0], []
            for t in scheduler.timesteps:
                index = scheduler.step_index or 0
                time = float(times[index])
                levels.append(time)
                u = scheduler.step((u - denoise(u / (1 - time), time / (1 - time))) / time, t, u).prev_sample
            out[f"diffusers/{name}/{n}"] = u.double().numpy()
            out[f"diffusers-sigmas/{name}/{n}"] = np.array([t / (1 - t) for t in [*levels, float(times[-1])]])


if __name__ == "__main__":
    k_diffusion()
    torch.set_default_dtype(torch.float32)  # diffusers mixes its tables with the default
    diffusers()
    flow()
    folder = pathlib.Path(__file__).parent
    np.savez_compressed(folder / "samplers.npz", **out)
    print(f"{len(out)} arrays; torch {torch.__version__}, diffusers {hf.__version__}")
