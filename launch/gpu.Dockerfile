# docker build -f launch/gpu.Dockerfile -t mlit_jax:gpu .
# CUDA comes with JAX's own packages: the host needs a driver and the container toolkit, nothing else.
FROM python:3.12-slim
WORKDIR /mlit_jax
COPY pyproject.toml README.md constraints.txt ./
COPY mlit_jax mlit_jax
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[gpu]'
ENV XLA_PYTHON_CLIENT_MEM_FRACTION=.92 PYTHONUNBUFFERED=1
# exec form: signals reach the run, which saves and exits with 75.
ENTRYPOINT ["python", "-m", "mlit_jax.train"]
