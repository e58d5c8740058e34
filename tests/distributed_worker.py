"""A command for tests/test_distributed.py and test_local_processes.py: sums over all devices until it is stopped."""

from absl import flags

from mean_jax import distributed
from mean_jax.cli import common
from mean_jax.errors import UserError
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()
common.define_job_flags(_FLAGS)
_DO = flags.DEFINE_enum("do", "sum", ["sum", "loop", "err", "fail"], "What to do.", flag_values=_FLAGS)


def _main() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    if _DO.value == "err":
        raise UserError("--data: store is missing;\nname another")
    if _DO.value == "fail" and not distributed.is_lead():
        raise KeyError("a defect")
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x_D = jax.make_array_from_callback((jax.device_count(),), sharding, lambda _: np.ones(1, np.float32))
    sum_fn = jax.jit(lambda x_D: jnp.ones_like(x_D) * (jnp.sum(x_D) / jnp.sum(x_D)), out_shardings=sharding)
    total = jax.jit(jnp.sum, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))(x_D)
    lead = "lead" if distributed.is_lead() else "other"
    print(f"{lead}: {int(total)} devices in {distributed.num_processes()} processes", flush=True)
    LOGGER.info("summed")
    while _DO.value == "loop":
        x_D = sum_fn(x_D).block_until_ready()
    distributed.barrier("summed")


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
