# docker build -f launch/tpu.Dockerfile -t mlit_jax:tpu .
FROM python:3.12-slim
WORKDIR /mlit_jax
COPY pyproject.toml README.md constraints.txt ./
COPY mlit_jax mlit_jax
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[tpu]'
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m", "mlit_jax.train"]
