"""What a CPU cannot show: fused kernels without double backward, device placement. `uv run pytest -m gpu` on a CUDA machine."""

import pytest
import torch

import nestmem
from nestmem.cli import main
from nestmem.memory import kernels
from tests.algos.test_meta_gradient import INNER_NORMS, batch, learner, relative_error
from tests.test_cli import TINY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")]


@pytest.mark.parametrize("norm", INNER_NORMS)
def test_meta_gradients(norm):
    data = type(batch())(*(t.cuda() for t in batch()))
    assert relative_error(learner(norm, steps=2).cuda(), data) < 1e-10


@pytest.mark.parametrize("memory", ["episodic", "slow"])
def test_meta_gradients_beside_a_memory(memory):
    data = type(batch())(*(t.cuda() for t in batch()))
    assert relative_error(learner("batch", memory, steps=2).cuda(), data) < 1e-10


@pytest.mark.parametrize("name", sorted(nestmem.memories()))
def test_every_memory_gives_what_it_gives_on_a_cpu(name):
    torch.manual_seed(0)
    memory, x = nestmem.build(name, 8).double(), torch.randn(3, 20, 8, dtype=torch.double)
    want = memory(x)[0]
    torch.testing.assert_close(memory.cuda()(x.cuda())[0].cpu(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear_attention", "retnet", "mamba2", "gla", "deltanet", "gated_deltanet"])
def test_kernels_give_what_the_chunk_form_gives(name):
    pytest.importorskip("fla", reason="kernels come with the extra `kernels`")
    torch.manual_seed(0)
    memory, x = nestmem.build(name, 64, heads=2).cuda(), torch.randn(2, 300, 64, device="cuda")
    want, _ = memory(x)
    with torch.autocast("cuda", torch.bfloat16):
        assert kernels.serve(x, memory.key)
        got, _ = memory(x)
    assert (got - want).norm() < 0.03 * want.norm()
    got.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.parametrize("experiment", ["quickstart", "maml"])
def test_training(tmp_path, experiment):
    assert main(["train", f"experiment={experiment}", f"run={tmp_path}/r", *TINY, "trainer.device=cuda"]) == 0
