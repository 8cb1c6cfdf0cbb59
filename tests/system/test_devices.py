"""What variables of jax's may say and what training does all the same."""

import select
import subprocess
import sys

import jax
import pytest

from squeezenet_jax.system import devices


@pytest.mark.parametrize(
    ("name", "other"),
    [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False)],
)
def test_numbers_are_the_usual_ones_whatever_the_variables_say(name, other):
    """As though JAX_ENABLE_X64 or another were set, which `jax.config` then begins with."""

    def drawn():
        bits = jax.random.bits(jax.random.split(jax.random.key(3), 5)[1], (3,))
        return bits.tolist(), (jax.numpy.zeros(2) + 1).dtype.name, jax.numpy.arange(2).dtype.name

    usual, before = drawn(), getattr(jax.config, name)
    try:
        jax.config.update(name, other)
        assert drawn() != usual
        devices.use_the_usual_numbers()
        assert drawn() == usual
    finally:
        jax.config.update(name, before)


def test_programs_that_another_process_compiles_are_waited_for_and_no_others():
    script = (
        "import os, jax\n"
        "from squeezenet_jax.system import devices\n"
        "jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])\n"
        "for what in ('other', 'same'):\n"
        "    with devices.compiled_once(what):\n"
        "        print(what, flush=True)\n"
    )
    with devices.compiled_once("same"):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "other\n"
        assert not select.select([process.stdout], [], [], 0.5)[0]
    assert process.communicate(timeout=100)[0] == "same\n"
    assert process.returncode == 0
