"""What going through a defense's own optimization finds beside what holding its end fixed does."""

import pytest
from attack_problems import Problem, run

from bench import load_dataset, load_defense


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("eabs", 3),
        # Where the search converges, or its steps depend on signs, both derivatives nearly agree.
        ("abs", 0),
        ("binary_abs", 0),
        ("variational_smoothing:cnn_gaussian", 0),
    ],
)
def test_a_defense_is_no_stronger_than_gradients_at_a_fixed_end_say(name, more):
    """E-ABS is weaker: its few steps do not converge."""
    defense, test = load_defense(name, dataset="digits"), load_dataset("digits").test
    x, y = test.images[:60], test.labels[:60]
    problem = Problem(defense, x, y, 10, (x[:0], y[:0]))
    fixed, unrolled = (
        int(
            run(
                problem, name, "L2", epsilon=0.5, eot_samples=1, steps=10, relative_step_size=0.25, restarts=1
            ).found.sum()
        )
        for name in ("eot_pgd", "unrolled_pgd")
    )
    assert fixed > 0
    assert unrolled >= fixed + more
