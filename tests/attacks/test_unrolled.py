"""What going through a defense's own optimization finds that holding its end fixed does not."""

from attack_problems import Problem, run

from bench import load_dataset, load_defense


def test_e_abs_is_weaker_than_gradients_at_fixed_latents_say():
    defense, test = load_defense("eabs", dataset="digits"), load_dataset("digits").test
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
    assert unrolled >= fixed + 3
