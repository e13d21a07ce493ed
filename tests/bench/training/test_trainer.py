"""The training loop: what it minimizes, and that an interruption changes nothing."""

import pytest
import torch
from torch import nn

import bench.training.trainer
from bench.contracts.progress import Silent
from bench.datasets.split import Split
from bench.training.trainer import Trainer, ramp, reproducible

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class Interrupted(Exception):
    pass


class Net(nn.Module):
    """Batch normalisation, dropout and an adversary: whatever a resumed training has to remember."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.adversary = nn.Linear(2, 1)

    def fit(self, data, trainer, stop_after=10**9):
        trainer.initialize(self)
        calls = []

        def loss(x, y, done):
            calls.append(done)
            if len(calls) > stop_after:
                raise Interrupted
            output = self.net(x)
            return nn.functional.cross_entropy(output, y) + self.adversary(output).mean()

        def adversary_loss(x, y, done):
            return -self.adversary(self.net(x).detach()).mean() + self.adversary.weight.square().sum()

        adversary = (self.adversary.parameters(), adversary_loss)
        trainer.minimize(
            self.net.parameters(), loss, data, epochs=4, batch_size=10, learning_rate=0.01, adversary=adversary
        )
        return calls


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(45, 5, generator=generator), torch.randint(2, (45,), generator=generator))


def trained(data, trainer, **options):
    net = Net()
    with reproducible(0):
        calls = net.fit(data, trainer, **options)
    return net.state_dict(), calls


@pytest.mark.parametrize("seen", [5, 9, 15])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(data, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.training.trainer, "KEEP_EVERY", 0)
    whole, calls = trained(data, Trainer(CPU, 0, Silent()))
    kept = tmp_path / "new" / "net.unfinished"
    with pytest.raises(Interrupted):
        trained(data, Trainer(CPU, 0, Silent(), kept), stop_after=seen)
    trainer = Trainer(CPU, 0, Silent(), kept)
    resumed, rest = trained(data, trainer)
    assert rest == calls[seen // 4 * 4 :]
    assert trainer.epochs == 4
    assert trainer.seconds > 0
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_stages_share_the_progress(data):
    done = []

    class Seen(Silent):
        def advance(self, amount=1, note=""):
            done.append(amount)

    net, trainer = nn.Linear(5, 2), Trainer(CPU, 0, Seen())
    for share in (0.25, 0.75):
        trainer.minimize(
            net.parameters(),
            lambda x, y, share: nn.functional.cross_entropy(net(x.flatten(1)), y),
            data,
            epochs=2,
            batch_size=10,
            learning_rate=0.01,
            share=share,
        )
    half = len(done) // 2
    assert (sum(done[:half]), sum(done[half:])) == (pytest.approx(0.25), pytest.approx(0.75))


class InPhases(Net):
    """Pretrains, then trains on with fewer steps: two calls of ``minimize``."""

    def fit(self, data, trainer, stop_after=10**9):
        trainer.initialize(self)
        calls = []

        def loss(x, y, done):
            calls.append(done)
            if len(calls) > stop_after:
                raise Interrupted
            return nn.functional.cross_entropy(self.net(x), y)

        for epochs in (2, 3):
            trainer.minimize(self.net.parameters(), loss, data, epochs=epochs, batch_size=10, learning_rate=0.01)
        return calls


@pytest.mark.parametrize("seen", [5, 10, 17])
def test_a_training_in_two_phases_resumes_each(data, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.training.trainer, "KEEP_EVERY", 0)
    monkeypatch.setattr(f"{__name__}.Net", InPhases)
    whole, calls = trained(data, Trainer(CPU, 0, Silent()))
    assert len(calls) == 8 + 12
    kept = tmp_path / "net.unfinished"
    with pytest.raises(Interrupted):
        trained(data, Trainer(CPU, 0, Silent(), kept), stop_after=seen)
    resumed, _ = trained(data, Trainer(CPU, 0, Silent(), kept))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_without_a_module_to_go_on_with_nothing_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.training.trainer, "KEEP_EVERY", 0)
    layer = nn.Linear(5, 2)
    Trainer(CPU, 0, Silent(), tmp_path / "kept").minimize(
        layer.parameters(), lambda x, y, done: layer(x).sum(), data, epochs=2, batch_size=10, learning_rate=0.1
    )
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_trained_anew(data, tmp_path):
    kept = tmp_path / "net.unfinished"
    (tmp_path / "net.unfinished1").write_bytes(b"nothing that torch wrote")
    whole, _ = trained(data, Trainer(CPU, 0, Silent()))
    again, calls = trained(data, Trainer(CPU, 0, Silent(), kept))
    assert len(calls) == 16
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_the_adversary_descends_its_own_loss_and_nothing_else(data):
    """Its loss alone would leave its bias free to rise; the net's loss would lower it."""
    net = Net()
    with reproducible(0):
        Trainer(CPU, 0, Silent()).initialize(net)
    before = net.adversary.bias.detach().clone()
    with reproducible(0):  # draws the same parameters again
        net.fit(data, Trainer(CPU, 0, Silent()))
    assert net.adversary.bias > before


def test_mixed_precision_computes_in_bfloat16_and_keeps_single(data):
    seen = set()

    def loss(x, y, done):
        output = layer(x)
        seen.add(output.dtype)
        return nn.functional.cross_entropy(output.float(), y)

    layer = nn.Linear(5, 2)
    for mixed in (False, True):
        Trainer(CPU, 0, Silent()).minimize(
            layer.parameters(), loss, data, epochs=1, batch_size=10, learning_rate=0.1, mixed_precision=mixed
        )
    assert seen == {torch.float32, torch.bfloat16}
    assert layer.weight.dtype == torch.float32


def test_a_loss_that_stops_being_finite_ends_the_training(data):
    layer = nn.Linear(5, 2)
    with pytest.raises(FloatingPointError, match="training diverged"):
        Trainer(CPU, 0, Silent()).minimize(
            layer.parameters(), lambda x, y, done: layer(x).sum() / 0, data, epochs=1, batch_size=10, learning_rate=0.1
        )


def test_a_ramp_rises_to_one_and_stays_there():
    assert [ramp(done, 0.5) for done in (0.0, 0.25, 0.5, 0.9)] == [0, 0.5, 1, 1]
    assert ramp(torch.tensor(0.25), 0.5) == 0.5
    assert ramp(torch.tensor(0.9), 0.5) == 1


@needs_gpu
def test_recorded_steps_are_those_taken_one_by_one(data):
    """With a share done that the loss depends on, batch normalisation and an adversary."""

    def weights(recordable):
        # A bias would have no gradient but rounding before batch normalisation, which Adam would follow.
        net = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
        judge = nn.Linear(2, 1)
        with reproducible(0):
            trainer = Trainer(torch.device("cuda"), 0, Silent())
            trainer.initialize(nn.ModuleList([net, judge]))
            trainer.minimize(
                net.parameters(),
                lambda x, y, done: ramp(done, 0.5) * nn.functional.cross_entropy(net(x), y) + judge(net(x)).mean(),
                data,
                epochs=10,
                batch_size=10,
                learning_rate=0.01,
                adversary=(judge.parameters(), lambda x, y, done: -judge(net(x).detach()).mean()),
                recordable=recordable,
            )
        return torch.cat([parameter.detach().flatten().cpu() for parameter in [*net.parameters(), *judge.parameters()]])

    torch.testing.assert_close(weights(True), weights(False), rtol=1e-3, atol=1e-4)
