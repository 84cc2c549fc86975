"""Working memory of a run: frames in a tree, nothing paid for twice, promotion with provenance, and a time limit."""

import pytest
import torch

from nestmem.memory.ntm import NTM
from nestmem.store import Filter, Retention, Store, StoreError, matrix_export, matrix_import
from nestmem.store.matrix import matrix_space
from nestmem.store.session import Session


def solve(work, answered, spans):
    """A recursion over two pages, as a reader would run it; `answered` counts what it had to read."""
    outer = work.frame("Where is the key?")
    parts = []
    for n, span in enumerate(spans):
        inner = work.frame(f"page {n}", within=outer.id)
        if work.get(inner.id).kind == "plan":
            answered.append(n)
            inner = work.result(inner.id, f"page {n} says: {work.get(span).text}", parents=[span])
        parts.append(inner.id)
    if work.get(outer.id).kind == "plan":
        outer = work.result(outer.id, "under the mat", parents=parts)
    return outer.id


def test_frames_stand_in_a_tree_and_rest_on_what_was_read(store, vectors):
    work = store.session("run")
    assert isinstance(work, Session) and work.items() == []
    spans = [work.put(f"text {n}", vectors={"w": vectors[n]}, source="book", start=n).id for n in range(2)]
    answer = solve(work, [], spans)
    top = work.get(answer)
    assert (top.kind, top.level, top.run, top.version) == ("result", 15, "run", 2)
    assert [i.kind for i in work.history(top.key)] == ["plan", "result"], "the call is the past of its answer"
    inner = work.children(answer)
    assert [i.level for i in inner] == [14, 14] and {i.call_path.partition("/")[0] for i in inner} == {top.call_path}
    assert [e.text for e in work.evidence(answer)] == ["text 0", "text 1"]
    assert store.items() == [] and store.search("page").ids == (), "nothing of it is in the store's namespace"
    assert set(work.search("page", k=9).ids) >= {i.id for i in inner}
    assert store.verify().clean


def test_a_run_that_died_finds_what_it_paid_for(place):
    with place.open() as first:
        work = first.session("run")
        spans = [work.put(f"text {n}").id for n in range(2)]
        outer = work.frame("Where is the key?")
        inner = work.frame("page 0", within=outer.id)
        work.result(inner.id, "page 0 says: text 0", parents=[spans[0]])
        work.frame("page 1", within=outer.id)
    with place.open() as second:
        work, answered = second.session("run"), []
        one = solve(work, answered, spans)
        assert answered == [1]
        generation = second.generation
        assert solve(work, answered, spans) == one and answered == [1] and second.generation == generation
        other = second.session("another run")
        assert other.items() == [], "sessions do not see each other"
        place.clock.days(30)
        assert second.decay_tick().forgotten and work.items() == []
        assert solve(work, answered, [second.put("text").id] * 2) == one and answered == [1], "what it knew comes back"
        assert second.verify().clean


def test_what_is_promoted_says_where_it_comes_from(store, vectors):
    work = store.session("run")
    span = work.put(
        "the key is under the mat", vectors={"w": vectors[0]}, source="book", start=3, stop=9, taint=True
    ).id
    fact = work.put("key: mat", key="key.place", level=1, kind="fact", parents=[span]).id
    call = work.frame("Where is the key?")
    done = work.result(call.id, "under the mat", parents=[fact]).id
    kept = work.promote([span, fact, done], root="keys")
    assert work.promote([span, fact, done], root="keys").ids == kept.ids, "again is nothing"
    items = [store.get(i) for i in kept.ids]
    assert {i.namespace for i in items} == {"default"} and {i.root for i in items} == {"keys"}
    assert [i.level for i in items] == [0, 1, 1] and [i.kind for i in items] == ["span", "fact", "result"]
    assert all(i.run == "run" and i.taint for i in items) and items[2].call_path == work.get(done).call_path
    assert items[0].start == 3 and store.find("key.place").id == kept.ids[1] and items[2].key.startswith("auto:")
    assert torch.equal(store.vector(kept.ids[0], "w"), vectors[0])
    for copy, original in zip(kept.ids, (span, fact, done)):
        assert [tie.dst for tie in store.links(copy, "derived_from")] == [original]
    assert span in {e.id for e in store.evidence(kept.ids[2])}
    work.supersede(fact, "key: vase", parents=[span])
    with pytest.raises(ValueError, match="use supersede"):
        work.promote(work.find("key.place").id, root="keys")
    assert store.erase(span).ids and store.find("key.place") is None and store.verify().clean


def test_a_session_ends_when_nobody_writes_to_it_and_evidence_stays(place):
    store = place.open(retention=Retention(work=2.0))
    old, busy = store.session("old"), store.session("busy")
    span = old.put("what was read").id
    fact = old.put("a thought", level=1, kind="fact", parents=[span]).id
    lost = old.put("another thought", level=1, kind="fact", parents=[span]).id
    kept = old.promote(fact).id
    first = busy.put("first").id
    place.clock.days(1.5)
    busy.put("second")
    assert store.decay_tick().forgotten == (), "a day and a half is not two"
    place.clock.days(0.5)
    tick = store.decay_tick()
    assert set(tick.forgotten) == {span, fact, lost} and old.items() == []
    assert store.decay_tick().generation == tick.generation and len(busy.items()) == 2
    assert [e.text for e in store.evidence(kept)] == ["what was read"]
    assert set(store.compact().ids) == {lost}, "what something promoted rests on stays"
    assert [e.text for e in store.evidence(kept)] == ["what was read"] and store.verify().clean
    assert busy.get(first).text == "first" and store.find(store.get(kept).key).id == kept


def test_namespaces_of_sessions_are_only_for_sessions(place, store):
    with pytest.raises(ValueError, match="a session's; open it with session"):
        store.put("lost in a week", namespace="work:mine")
    with pytest.raises(ValueError, match="a session's; open it with session"):
        Store(place.url, namespace="work:mine")
    with pytest.raises(ValueError, match="run: expected some text"):
        store.session("")
    store.put("not scratch", namespace="WORK:mine")
    place.clock.days(100)
    assert store.decay_tick().forgotten == ()


def test_frames_are_checked(store):
    work = store.session("run")
    item = work.put("no frame").id
    with pytest.raises(ValueError, match="expected a frame of this session"):
        work.frame("call", within=item)
    with pytest.raises(StoreError, match="no frame"):
        work.result(item, "answer")
    inside = work.frame("0").id
    for depth in range(1, 15):
        inside = work.frame(str(depth), within=inside).id
    with pytest.raises(ValueError, match="at most 15 calls"):
        work.frame("15", within=inside)
    assert work.get(inside).level == 1 and store.verify().clean


# Matrices.


def test_a_memory_goes_on_from_its_slots_bit_for_bit(store, place):
    torch.manual_seed(0)
    model, x = NTM(8, slots=6, width=5), torch.randn(1, 9, 8)
    with torch.no_grad():
        _, state, _ = model.run(x, model.initial_state(1))
    work = store.session("run")
    said = [f"snippet {n}" for n in range(6)]
    put = matrix_export(work, "page 3", state.memory[0], model, kinds=["span"] * 5 + ["plan"], texts=said)
    generation = store.generation
    assert matrix_export(work, "page 3", state.memory[0], model, kinds=["span"] * 5 + ["plan"], texts=said) == put
    assert store.generation == generation
    with place.open() as other:
        back = matrix_import(other.session("run"), "page 3", model)
    assert torch.equal(back.matrix, state.memory[0]) and back.texts == tuple(said) and back.kinds[-1] == "plan"
    assert back.ids == put.ids
    again = state._replace(memory=back.matrix[None])
    with torch.no_grad():
        ends = [model.run(x, s)[0] for s in (state, again)]
    assert torch.equal(*ends)
    slot = work.search(vector=state.memory[0, 2], space=matrix_space(model), k=6, where=Filter(kinds=["span"]))
    assert len(slot.ids) == 5 and store.verify().clean


def test_a_matrix_of_other_weights_or_with_slots_missing_is_refused(store):
    torch.manual_seed(0)
    model, other = NTM(8, slots=4, width=5), NTM(8, slots=4, width=5)
    matrix = torch.randn(4, 5)
    ids = matrix_export(store, "m", matrix, model).ids
    with pytest.raises(StoreError, match="other weights"):
        matrix_import(store, "m", other)
    matrix_export(store, "n", matrix, other)
    with pytest.raises(StoreError, match="other weights"):
        matrix_import(store, "m", other)
    with pytest.raises(ValueError, match="use supersede"):
        matrix_export(store, "m", matrix + 1, model)
    with pytest.raises(StoreError, match="nothing under the name"):
        matrix_import(store, "nowhere", model)
    store.forget(ids[1])
    with pytest.raises(StoreError, match="3 of 4 slots"):
        matrix_import(store, "m", model)
    for wrong, says in (
        (dict(matrix=matrix[0]), r"\[slots, width\]"),
        (dict(kinds="fact"), "kinds"),
        (dict(texts=["a"]), "texts"),
    ):
        with pytest.raises(ValueError, match=says):
            matrix_export(store, "bad", **{"matrix": matrix, "weights": model, **wrong})
    with pytest.raises(ValueError, match="finite"):
        matrix_export(store, "bad", matrix * float("nan"), model)
    assert store.verify().clean
