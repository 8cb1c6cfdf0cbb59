"""How a machine is divided: visible-device variables, virtual devices and cores, without any of them being there."""

import pytest

from squeezenet_jax.experiment import shares
from squeezenet_jax.experiment.shares import Machine
from squeezenet_jax.system.errors import UserError

GIB = 1 << 30
EIGHT = tuple(range(8))


def gpus(count, platform="cuda", memory=80 * GIB):
    return Machine(platform, count, memory, EIGHT)


def environments(machine, jobs, **environ):
    return [dict(share.environment) for share in shares.divide(machine, jobs, environ)]


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", "", "²"])
def test_jobs_is_a_number_or_auto(text):
    assert (shares.parse("3"), shares.parse("auto")) == (3, "auto")
    with pytest.raises(UserError, match=r"--jobs: .* is not allowed; it must be a whole number from 1, or auto"):
        shares.parse(text)


def test_gpus_are_divided_evenly_by_the_variable_that_their_runtime_reads():
    name = "CUDA_VISIBLE_DEVICES"
    assert environments(gpus(4), 4) == [{name: str(index)} for index in range(4)]
    assert environments(gpus(8), 2) == [{name: "0,1,2,3"}, {name: "4,5,6,7"}]
    assert environments(gpus(8), 3) == [{name: "0,1"}, {name: "2,3"}, {name: "4,5"}]  # equal shares: two are idle
    assert environments(gpus(2, "rocm"), 2) == [{"HIP_VISIBLE_DEVICES": "0"}, {"HIP_VISIBLE_DEVICES": "1"}]


def test_a_part_of_the_gpus_that_the_user_chose_is_divided_by_the_names_that_it_has():
    name = "CUDA_VISIBLE_DEVICES"
    assert environments(gpus(2), 2, CUDA_VISIBLE_DEVICES="5, GPU-8932f937") == [{name: "5"}, {name: "GPU-8932f937"}]
    with pytest.raises(UserError, match=r"--jobs: CUDA_VISIBLE_DEVICES names 3 devices \(0,1,7\), jax finds 2"):
        environments(gpus(2), 2, CUDA_VISIBLE_DEVICES="0,1,7")
    environ = {"CUDA_VISIBLE_DEVICES": "3,4", "ROCR_VISIBLE_DEVICES": "3,4,5,6,7", "HOME": "/"}
    share = shares.divide(gpus(2, "rocm"), 2, environ)[1]
    share.take(environ)  # HIP counts what ROCR lets through; CUDA's name for the same would be in the way
    assert environ == {"HIP_VISIBLE_DEVICES": "4", "ROCR_VISIBLE_DEVICES": "3,4,5,6,7", "HOME": "/"}


def test_a_process_with_some_of_a_hosts_tpu_chips_is_told_their_shape_and_has_a_port_of_its_own():
    one, two = environments(gpus(4, "tpu"), 2)
    assert one == {
        "TPU_VISIBLE_CHIPS": "0,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_ADDRESSES": "localhost:8476",
        "TPU_PROCESS_PORT": "8476",
        "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    assert (two["TPU_VISIBLE_CHIPS"], two["TPU_PROCESS_PORT"]) == ("2,3", "8477")
    shapes = {jobs: environments(gpus(8, "tpu"), jobs)[-1] for jobs in (1, 2, 3, 8)}
    assert {jobs: shape["TPU_CHIPS_PER_PROCESS_BOUNDS"] for jobs, shape in shapes.items()} == {
        1: "2,4,1",
        2: "2,2,1",
        3: "1,2,1",
        8: "1,1,1",
    }
    assert shapes[3]["TPU_VISIBLE_CHIPS"] == "4,5"


def test_cores_are_divided_evenly_and_left_alone_where_there_are_too_few():
    one_cpu = Machine("cpu", 1, 64 * GIB, (0, 4, 1, 5, 2, 6, 3, 7))  # hardware threads of a core side by side
    assert [share.cores for share in shares.divide(one_cpu, 3, {})] == [(0, 4), (1, 5), (2, 6)]
    assert environments(one_cpu, 3) == [{}] * 3
    virtual = Machine("cpu", 8, 64 * GIB, (0, 1))
    assert environments(virtual, 4) == [{"JAX_NUM_CPU_DEVICES": "2"}] * 4
    assert [share.cores for share in shares.divide(virtual, 4, {})] == [()] * 4
    assert [share.cores for share in shares.divide(gpus(2), 2, {})] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_more_runs_at_a_time_than_devices_are_refused(tiny):
    runs = [tiny()]
    assert shares.number(4, gpus(4), runs) == 4
    with pytest.raises(UserError, match="--jobs: 5 is not allowed; it must be at most 4, the GPUs here"):
        shares.number(5, gpus(4), runs)
    with pytest.raises(UserError, match="--jobs: 9 is not allowed; it must be at most 8, the cores here"):
        shares.number(9, Machine("cpu", 1, 64 * GIB, EIGHT), runs)


def test_auto_takes_a_device_for_each_run_where_a_batch_fits_on_one(tiny):
    small, large = tiny(), tiny(data__image_size=224, model__width=1.0, train__batch_size=4096)
    assert shares.number("auto", gpus(8), [small] * 9) == 8
    assert shares.number("auto", gpus(8), [small] * 3) == 3
    assert shares.number("auto", gpus(8), [small, large]) == 1
    assert shares.number("auto", gpus(8, memory=0), [small] * 3) == 1  # nobody says how much there is
    assert shares.number("auto", Machine("cpu", 1, 64 * GIB, EIGHT), [small] * 9) == 8
