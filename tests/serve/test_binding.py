"""Which processors vLLM's threads get, from descriptions of machines."""

from pathlib import Path

import pytest

from moe4.errors import ServeError
from moe4.machine.processors import Processors, parse_list, read_processors, read_quota
from moe4.serve.binding import MOST_CORES, choose_binding

BIND, YIELD = "VLLM_CPU_OMP_THREADS_BIND", "MOE4_YIELD_PROCESSORS"


def plain(count: int, **facts: float) -> Processors:
    return Processors(cores=tuple((number,) for number in range(count)), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, MOST_CORES])
def test_few_cores_all_compute(count: int) -> None:
    found = choose_binding(plain(count), 1, {})
    assert found.variables == {BIND: ",".join(map(str, range(count))), YIELD: "1"}
    assert found.num_threads == count


def test_one_core_has_nothing_to_give_up() -> None:
    assert choose_binding(plain(1), 1, {}).variables == {BIND: "0"}


@pytest.mark.parametrize("processors", [plain(MOST_CORES + 1), plain(4, num_nodes=2)])
def test_many_cores_and_several_nodes_are_left_to_vllm(processors: Processors) -> None:
    found = choose_binding(processors, 1, {})
    assert found.variables == {} and found.num_threads is None


def test_one_thread_of_each_core_and_only_those_of_the_mask() -> None:
    shared = Processors(cores=((0, 4), (1, 5), (6,)))
    assert choose_binding(shared, 1, {}).variables[BIND] == "4,5,6"


@pytest.mark.parametrize(("quota", "threads"), [(2.0, "2"), (3.9, "3"), (0.5, "1")])
def test_a_share_of_time_below_the_processors_counts_and_binds_nothing(quota: float, threads: str) -> None:
    found = choose_binding(plain(64, quota=quota), 1, {})
    assert found.variables == {BIND: "nobind", "OMP_NUM_THREADS": threads}


def test_a_share_of_time_above_the_processors_changes_nothing() -> None:
    assert choose_binding(plain(2, quota=2.0), 1, {}) == choose_binding(plain(2), 1, {})


@pytest.mark.parametrize(
    "name", [BIND, "VLLM_CPU_NUM_OF_RESERVED_CPU", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY"]
)
def test_what_the_user_has_set_decides(name: str) -> None:
    found = choose_binding(plain(2), 1, {name: "1"})
    assert found.variables == {} and found.reason == f"{name} is set"


def test_ranks_get_equal_runs() -> None:
    assert choose_binding(plain(5), 2, {}).variables == {BIND: "0,1|2,3"}
    assert choose_binding(plain(5), 2, {BIND: "0|1"}).variables == {}
    shared = Processors(cores=((0, 2), (1, 3)))
    assert choose_binding(shared, 2, {}).variables == {BIND: "2|3"}
    assert choose_binding(shared, 4, {}).variables == {BIND: "0|2|1|3"}
    assert choose_binding(plain(8, quota=4.0), 2, {}).variables == {BIND: "0,1|2,3"}
    with pytest.raises(ServeError, match="3 ranks need 3 processors, found 2"):
        choose_binding(plain(2), 3, {})


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"sys/devices/system/node/node{n}/cpulist": text for n, text in enumerate(("0-3", "4-7", "8"))}
    for cpu in range(8):
        name = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        files[name] = f"{cpu % 4},{cpu % 4 + 4}\n"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 3, 4, 7})
    found = read_processors(write(tmp_path, files))
    assert found == Processors(cores=((0, 4), (1,), (3, 7)), num_nodes=2, quota=None)
    assert found.num_logical == 5
    bare = read_processors(tmp_path / "nowhere")
    assert bare == Processors(cores=((0,), (1,), (3,), (4,), (7,)), num_nodes=1, quota=None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (  # the tightest of the groups it is in
            {
                "proc/self/cgroup": "0::/pod/server\n",
                "sys/fs/cgroup/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/server/cpu.max": "800000 100000\n",
            },
            2.0,
        ),
        (  # a container that sees its own group as the root
            {"proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/pod\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_the_control_groups_share_of_time(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    assert read_quota(write(tmp_path, files)) == expected


def test_lists_of_the_kernel() -> None:
    assert parse_list("0-2,8,10-11\n") == [0, 1, 2, 8, 10, 11]
    assert parse_list("\n") == []
