"""The suite every registered memory passes: register a memory, and it is held to all of this."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

import nestmem
from nestmem.memory import registry
from nestmem.memory.base import LIFETIMES, map_state, where_rows

D, B, T = 7, 3, 21
FIELDS = nestmem.Fields(content=3, cue=2, outcome=2)
VARIANTS = [
    pytest.param((name, fields), id=f"{name}-{'fields' if fields else 'plain'}")
    for name in nestmem.memories()
    for fields in (None, FIELDS)
]


@pytest.fixture(params=VARIANTS)
def memory(request):
    name, fields = request.param
    torch.manual_seed(0)
    return nestmem.build(name, D, fields).double()


def tokens(memory, steps=T, rows=B, seed=1):
    """Random tokens; where the memory has label fields, their outcomes are one-hot."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, steps, D, generator=generator, dtype=torch.double)
    if uses_labels(memory):
        labels = torch.randint(2, (rows, steps), generator=generator)
        x[..., 5:] = torch.nn.functional.one_hot(labels, 2).double()
    return x


def uses_labels(memory):
    return getattr(memory, "labels", False) or getattr(getattr(memory, "binding", None), "fields", None) is not None


def loop(memory, x, state):
    ys = []
    for t in range(x.shape[1]):
        y, state, _ = memory.step(x[:, t], state)
        ys.append(y)
    return torch.stack(ys, 1), state


def stepper(memory, x):
    """What may vary smoothly (labels may not), and the loop over steps as a function of it."""
    free = 5 if uses_labels(memory) else D
    part = x[..., :free].clone().requires_grad_()

    def run(part):
        return loop(memory, torch.cat([part, x[..., free:]], -1), memory.initial_state(x.shape[0]))[0]

    return part, run


def flat(state):
    return torch.cat([t.double().flatten() for t in nestmem.state_to_dict(state).values()])


def grads(memory, y):
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    parameters = list(memory.parameters())
    found = torch.autograd.grad((y * weight).sum(), parameters, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters)])


def test_forward_equals_step_in_outputs_state_and_gradients(memory):
    x = tokens(memory)
    fast, fast_state = memory(x)
    slow, slow_state = loop(memory, x, memory.initial_state(B))
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(fast_state), flat(slow_state), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads(memory, fast), grads(memory, slow), rtol=1e-9, atol=1e-9)
    assert grads(memory, fast).abs().sum() > 0


@pytest.mark.parametrize("cut", [1, 8, 16, 20])
def test_splitting_a_sequence_changes_nothing(memory, cut):
    x = tokens(memory)
    whole, end = memory(x)
    first, state = memory(x[:, :cut])
    second, split_end = memory(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(split_end), flat(end), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0, 9, 20])
def test_causal(memory, t):
    x = tokens(memory)
    changed = x.clone()
    changed[:, t] = changed[:, t].flip(-1) + 0.3
    before, after = memory(x)[0], memory(changed)[0]
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t:], after[:, t:])


def test_rows_are_independent(memory):
    x = tokens(memory)
    order = torch.tensor([2, 0, 1])
    y, state = memory(x)
    permuted, permuted_state = memory(x[order])
    torch.testing.assert_close(permuted, y[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat(permuted_state), flat(nestmem.select(state, order)), rtol=1e-12, atol=1e-12)


def test_reset_of_one_row_leaves_the_others(memory):
    x = tokens(memory)
    _, state = memory(x)
    done = torch.tensor([False, True, False])
    for until in LIFETIMES:
        after = memory.reset(state, done, until=until)
        keep = torch.tensor([0, 2])
        assert torch.equal(flat(nestmem.select(after, keep)), flat(nestmem.select(state, keep)))
        row = torch.tensor([1])
        cleared = torch.equal(flat(nestmem.select(after, row)), flat(memory.initial_state(1)))
        if not hasattr(memory, "levels"):
            assert cleared == (LIFETIMES.index(memory.spec.lifetime) <= LIFETIMES.index(until))
    assert cleared, "a reset until the end of life clears everything"


def test_reset_within_a_sequence_equals_reset_between_two(memory):
    x = tokens(memory)
    flags = torch.zeros(B, T, dtype=torch.bool)
    flags[1, 6] = flags[2, 11] = True
    y, state = memory(x, reset=flags)
    want = memory.initial_state(B)
    ys = []
    for t in range(T):
        want = memory.reset(want, flags[:, t])
        out, want, _ = memory.step(x[:, t], want)
        ys.append(out)
    torch.testing.assert_close(y, torch.stack(ys, 1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(state), flat(want), rtol=1e-9, atol=1e-9)


def test_masked_steps_do_not_happen(memory):
    x = tokens(memory)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 4:7] = mask[2, 0] = mask[1, 20] = False
    y, state = memory(x, mask=mask)
    for row in range(B):
        kept = mask[row]
        alone, alone_state = memory(x[row : row + 1, kept])
        torch.testing.assert_close(y[row, kept], alone[0], rtol=1e-9, atol=1e-9)
        assert (y[row, ~kept] == 0).all()
        one = nestmem.select(state, torch.tensor([row]))
        torch.testing.assert_close(flat(one), flat(alone_state), rtol=1e-9, atol=1e-9)


def test_read_is_pure_and_takes_many_queries(memory):
    x = tokens(memory)
    _, state = memory(x)
    before = flat(state).clone()
    queries = tokens(memory, steps=5, seed=2)
    many, _ = memory.read(queries, state)
    one, _ = memory.read(queries[:, 3], state)
    torch.testing.assert_close(many[:, 3], one)
    assert torch.equal(flat(state), before)


def test_gradcheck_through_steps(memory):
    part, run = stepper(memory, tokens(memory, steps=4, rows=2))
    assert torch.autograd.gradcheck(run, (part,), atol=1e-6)


def test_gradgradcheck_where_usable_in_an_inner_loop(memory):
    if not memory.spec.vmap:
        pytest.skip("the spec does not promise it")
    part, run = stepper(memory, tokens(memory, steps=3, rows=1))
    assert torch.autograd.gradgradcheck(run, (part,), atol=1e-5)


def test_vmap_of_grad_equals_a_loop(memory):
    if not memory.spec.vmap:
        pytest.skip("the spec does not promise it")
    x = tokens(memory)
    parameters = {k: v.detach() for k, v in memory.named_parameters()}

    def loss(parameters, row):
        return functional_call(memory, parameters, (row[None],))[0].square().mean()

    batched = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(B):
        y = memory(x[row : row + 1])[0].square().mean()
        found = torch.autograd.grad(y, list(memory.parameters()), allow_unused=True)
        for (name, p), value in zip(memory.named_parameters(), found):
            want = torch.zeros_like(p) if value is None else value
            torch.testing.assert_close(batched[name][row], want, rtol=1e-9, atol=1e-9)


def test_step_and_fast_form_compile_to_one_graph(memory):
    if not memory.spec.compiles:
        pytest.skip("the spec does not promise it")
    x = tokens(memory, steps=4)
    state = memory.initial_state(B)
    torch.compiler.reset()  # the memories share code objects, and a code object may be compiled for few of them
    compiled = torch.compile(memory.step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x[:, 0], state)[0], memory.step(x[:, 0], state)[0])
    compiled = torch.compile(memory.run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, state)[0], memory.run(x, state)[0])


def test_state_survives_save_and_load(memory, tmp_path):
    from safetensors.torch import load_file, save_file

    x = tokens(memory)
    _, state = memory(x)
    save_file(nestmem.state_to_dict(state), tmp_path / "state.safetensors")
    back = nestmem.state_from_dict(load_file(tmp_path / "state.safetensors"), memory.initial_state(1))
    more = tokens(memory, seed=5)
    torch.testing.assert_close(memory(more, back)[0], memory(more, state)[0], rtol=1e-12, atol=1e-12)
    assert nestmem.state_bytes(state) == sum(
        t[:1].numel() * t.element_size() for t in nestmem.state_to_dict(state).values()
    )


def test_detached_state_stops_gradients(memory):
    _, state = memory(tokens(memory))
    cut = nestmem.detach(state)
    map_state(lambda t: pytest.fail("still in the graph") if t.requires_grad else t, cut)


def test_finite_after_ten_thousand_adversarial_repeats(memory):
    memory = memory.float()
    x = tokens(memory, steps=1, rows=2).float().expand(2, 500, D) * 30
    state = memory.initial_state(2)
    with torch.no_grad():
        for _ in range(20):
            y, state = memory(x, state)
    assert y.isfinite().all() and flat(state).isfinite().all()


def test_wrong_width_names_what_came(memory):
    with pytest.raises(ValueError, match=r"expected tokens \[B, T, 7\], got \[2, 3, 5\]"):
        memory(torch.zeros(2, 3, 5))


def test_schema_covers_the_constructor():
    for name in nestmem.memories():
        options = registry.schema(name)().__dict__
        assert options.pop("name") == name
        nestmem.build(name, 8, **options)


def test_where_rows_picks_rows():
    old, new = torch.zeros(2, 3), torch.ones(2, 3)
    assert torch.equal(where_rows(torch.tensor([True, False]), new, old), torch.tensor([[1.0] * 3, [0.0] * 3]))
