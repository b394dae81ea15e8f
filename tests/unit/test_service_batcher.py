"""Whose turn it is at the service, and what becomes of work that nobody waits for."""

import asyncio
import threading

import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="the service needs fastapi")

from recbole_diffurec.inference.batcher import Batcher, Lanes, Wanted
from recbole_diffurec.inference.limits import Refusal
from recbole_diffurec.inference.lists import ListOptions


class FakeRecommender:
    """Recommends the last item of a history; records the histories scored together; waits where it is told to."""

    network = None

    def __init__(self):
        self.batches, self.blocked = [], threading.Event()

    def with_sampling_steps(self, steps):
        raise AssertionError("not a diffusion model")

    def unknown(self, histories):
        return 0

    def recommend(self, histories, k, exclude_seen, candidates, users, samples, diversity):
        self.batches.append([history[0] for history in histories])
        if histories[0][0] == "wait":
            assert self.blocked.wait(timeout=10)
        if histories[0][0] == "fail":
            raise MemoryError("too large")
        rows = [(user, history[-1], 1.0, False) for user, history in enumerate(histories)]
        return pd.DataFrame(rows, columns=["user_id", "item_id", "score", "popular"])


WANTED, OTHER = Wanted(ListOptions(k=1), 1), Wanted(ListOptions(k=2), 1)


def with_batcher(test, max_batch=4, max_work=1000):
    """Run ``test(batcher, recommender)`` while the batcher scores."""

    async def run():
        recommender, sizes = FakeRecommender(), []
        batcher = Batcher(recommender, max_batch, max_work, sizes.append)
        worker = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(test(batcher, recommender), 20)
        finally:
            recommender.blocked.set()
            worker.cancel()
            batcher.close()

    return asyncio.run(run())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def histories(name, count):
    return [[name, str(i)] for i in range(count)]


async def waiting_batch(batcher, recommender):
    """A batch under way that ends when the recommender is told."""
    task = asyncio.create_task(batcher.submit(WANTED, [["wait", "0"]]))
    await until(lambda: recommender.batches)
    return task


def test_requests_that_want_the_same_share_a_batch_and_large_ones_take_several():
    async def test(batcher, recommender):
        first = await waiting_batch(batcher, recommender)
        tasks = [asyncio.create_task(batcher.submit(WANTED, histories(name, n))) for name, n in (("a", 6), ("b", 1))]
        await asyncio.sleep(0)
        recommender.blocked.set()
        answers = await asyncio.gather(first, *tasks)
        assert [[f'"item_id":"{i}"'.encode() in one for i, one in enumerate(lists)] for lists in answers] == [
            [True], [True] * 6, [True]
        ]  # fmt: skip
        assert recommender.batches == [["wait"], ["b", "a", "a", "a"], ["a", "a", "a"]]

    with_batcher(test)


def test_a_small_request_passes_the_rest_of_a_large_one():
    async def test(batcher, recommender):
        first = await waiting_batch(batcher, recommender)
        large = [asyncio.create_task(batcher.submit(WANTED, histories(f"large {i}", 40))) for i in range(3)]
        await asyncio.sleep(0)
        small = asyncio.create_task(batcher.submit(OTHER, histories("small", 1)))
        await asyncio.sleep(0)
        recommender.blocked.set()
        await asyncio.gather(first, small, *large)
        names = [batch[0] for batch in recommender.batches]
        assert names[:5] == ["wait", "small", "large 0", "large 1", "large 2"]

    with_batcher(test)


def test_small_requests_do_not_hold_up_a_large_one_for_ever():
    """Of three that always wait each gets a third: 8 histories of the large one, so 16 of the others, and the last."""

    async def test(batcher, recommender):
        large = asyncio.create_task(batcher.submit(WANTED, histories("large", 8)))

        async def others(k):
            count = 0
            while not large.done():
                await batcher.submit(Wanted(ListOptions(k=k), 1), histories("small", 1))
                count += 1
            return count

        assert sum(await asyncio.gather(others(2), others(3))) <= 22

    with_batcher(test)


def test_work_whose_client_has_gone_is_not_done():
    async def test(batcher, recommender):
        first = await waiting_batch(batcher, recommender)
        gone = asyncio.create_task(batcher.submit(WANTED, histories("gone", 40)))
        stays = asyncio.create_task(batcher.submit(WANTED, histories("stays", 1)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        recommender.blocked.set()
        await asyncio.gather(first, stays)
        assert recommender.batches == [["wait"], ["stays"]]

    with_batcher(test)


def test_the_queue_is_counted_in_work():
    async def test(batcher, recommender):
        first = await waiting_batch(batcher, recommender)
        waits = asyncio.create_task(batcher.submit(Wanted(ListOptions(samples=3), 5), histories("a", 6)))
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="too much work waits") as refusal:  # 1 + 6 * 3 * 5 + 10 > 100
            await batcher.submit(Wanted(ListOptions(), 10), histories("b", 1))
        assert refusal.value.status == 503 and refusal.value.retry_after >= 1
        assert refusal.value.response().headers["retry-after"] == str(refusal.value.retry_after)
        fits = asyncio.create_task(batcher.submit(Wanted(ListOptions(), 9), histories("b", 1)))
        await asyncio.sleep(0)
        recommender.blocked.set()
        await asyncio.gather(first, waits, fits)
        await batcher.submit(Wanted(ListOptions(), 100), histories("c", 1))  # nothing of the others is left

    with_batcher(test, max_work=100)


def test_an_error_is_that_of_its_requests():
    async def test(batcher, recommender):
        with pytest.raises(MemoryError):
            await batcher.submit(WANTED, [["fail", "0"]])
        assert len(await batcher.submit(WANTED, histories("a", 1))) == 1

    with_batcher(test)


def test_a_small_request_has_a_lane_of_its_own():
    async def run():
        recommender = FakeRecommender()
        lanes = Lanes(recommender, 256, 10**5, lambda size: None)
        worker = asyncio.create_task(lanes.run())
        large = asyncio.create_task(lanes.submit(Wanted(ListOptions(samples=10), 32), [["wait", "0"]] * 40))
        await until(lambda: recommender.batches)
        await asyncio.wait_for(lanes.submit(Wanted(ListOptions(), 32), histories("small", 1)), 5)
        assert not large.done()
        recommender.blocked.set()
        await large
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker

    asyncio.run(run())
