"""FAISS and torch count threads by one setting."""

from concurrent.futures import ThreadPoolExecutor

import torch

from model.index_kinds import one_thread


def test_one_thread_holds_for_torch_as_well_also_in_a_thread_that_never_used_it() -> None:
    def counts() -> list[int]:
        with one_thread():
            inside = torch.get_num_threads()
        return [inside, torch.get_num_threads()]

    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(counts).result() == [1, torch.get_num_threads()]
