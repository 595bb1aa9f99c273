# The main job in an image: python3 >= 3.11 with its venv module is all the base must have.
#
#   docker build -t numarep .
#   docker run --rm -v "$PWD/results:/home/numarep/results" numarep [KEY=VALUE ...]
#
# The folder mounted at results/ must be writable by user 1000. Without a registry, on a base of
# Debian's own packages, with Debian's buildah (as root):
#
#   debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm base
#   c=$(buildah from scratch) && buildah add "$c" base / && buildah commit "$c" debian-base
#   buildah bud --build-arg BASE=localhost/debian-base -t numarep .
#   c=$(buildah from localhost/numarep) && buildah run "$c" python -m numarep.sweep
# Inside a container of its own it also wants `--isolation chroot` and the vfs storage driver.
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
WORKDIR /src
# The dependencies first: they change least, and are all but a few MB of the image.
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv /opt/numarep \
 && python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && /opt/numarep/bin/pip install --no-cache-dir --no-compile -c constraints.txt -r requirements.txt
COPY . .
RUN /opt/numarep/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE}
RUN useradd --create-home --uid 1000 numarep
COPY --from=build /opt/numarep /opt/numarep
COPY --from=build /wheel /wheel
RUN /opt/numarep/bin/pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
USER numarep
WORKDIR /home/numarep
ENV PATH=/opt/numarep/bin:$PATH
# Compiles the core once, into the image.
RUN python -m numarep.sweep study=single executor=serial out=/tmp/warm && rm -r /tmp/warm
ENTRYPOINT ["python", "-m", "numarep.sweep"]
