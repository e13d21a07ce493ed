"""The names of the built-in attacks and defenses, and the modules that hold them."""

from __future__ import annotations

from typing import Literal

Group = Literal["defenses", "attacks"]
WRAPPERS = {"randomized_smoothing": "defenses.smoothing", "variational_smoothing": "defenses.smoothing"}
"""Modules of the defenses that wrap another one, ``<wrapper>:<defense>``. A function there has the wrapper's name."""

BUILTINS: dict[Group, dict[str, str]] = {
    "defenses": {
        "cnn": "defenses.cnn",
        "binary_cnn": "defenses.cnn",
        "cnn_gaussian": "defenses.cnn",
        "nearest_neighbour": "defenses.nearest_neighbour",
        "adv_linf": "defenses.adversarial_training",
        "adv_l2": "defenses.adversarial_training",
        "abs": "defenses.abs",
        "binary_abs": "defenses.abs",
        "abs:schott2019": "defenses.abs",
        "binary_abs:schott2019": "defenses.abs",
        "eabs": "defenses.eabs",
        "cnn:ju2020": "defenses.eabs.cnn",
        "abs:ju2020": "defenses.eabs",
        "a_abs": "defenses.eabs",
        "d_abs": "defenses.eabs",
        "v_abs": "defenses.eabs",
        "ad_abs": "defenses.eabs",
        "av_abs": "defenses.eabs",
        "dv_abs": "defenses.eabs",
        "beta_vac": "defenses.beta_vac",
    },
    "attacks": {
        "gaussian_noise": "attacks.noise",
        "uniform_noise": "attacks.noise",
        "salt_and_pepper": "attacks.noise",
        "pointwise": "attacks.pointwise",
        "pointwise_10x": "attacks.pointwise",
        "fgm": "attacks.fast_gradient",
        "fgsm": "attacks.fast_gradient",
        "bim": "attacks.iterative_gradient",
        "pgd": "attacks.iterative_gradient",
        "mim": "attacks.iterative_gradient",
        "eot_pgd": "attacks.iterative_gradient",
        "unrolled_pgd": "attacks.iterative_gradient",
        "apgd_ce": "attacks.apgd",
        "apgd_dlr": "attacks.apgd",
        "apgd_t": "attacks.apgd",
        "ddn": "attacks.ddn",
        "cw": "attacks.cw",
        "fmn": "attacks.fmn",
        "ead": "attacks.ead",
        "deepfool": "attacks.deepfool",
        "autoattack": "attacks.autoattack",
        "fab": "attacks.autoattack",
        "boundary": "attacks.boundary",
        "square": "attacks.square",
        "sparse_rs": "attacks.sparse_rs",
        "hopskipjump": "attacks.hopskipjump",
        "sigma_zero": "attacks.sigma_zero",
        "vfga": "attacks.vfga",
        "latent_descent": "attacks.latent_descent",
        "transfer": "attacks.transfer",
        "fgm_ge": "attacks.gradient_estimation",
        "fgsm_ge": "attacks.gradient_estimation",
        "bim_ge": "attacks.gradient_estimation",
        "mim_ge": "attacks.gradient_estimation",
        "pgd_ge": "attacks.gradient_estimation",
        "deepfool_ge": "attacks.gradient_estimation",
    },
}
"""The module of each built-in, so that one can be found without importing the others."""
