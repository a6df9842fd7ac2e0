"""Python packaging: `pip install .` on a machine without ROS, and the one list of dependencies.

colcon does not run this file, because package.xml's build type is ament_cmake; the executables that
ROS sees are listed in CMakeLists.txt. `make setup` installs these extras at the versions pinned in
constraints.txt.
"""

from setuptools import find_packages, setup

EXECUTABLES = {
    "openvla-ros": "openvla_ros.cli:main",
    "openvla_node": "openvla_ros.ros.node:main",
    "action_to_twist": "openvla_ros.ros.action_to_twist:main",
    "bag_player": "openvla_ros.ros.bag_player:main",
    "camera_node": "openvla_ros.ros.camera:main",
    "mock_robot": "openvla_ros.ros.mock_robot:main",
    "monitor": "openvla_ros.ros.monitor:main",
    "servo_starter": "openvla_ros.ros.servo_starter:main",
    "sim_cell": "openvla_ros.ros.sim_cell:main",
}

# What every machine needs: messages, control, the mock policy and the command line. Nothing here
# depends on torch.
CORE = [
    "numpy>=1.23.5",
    # OpenCV 5 renumbered its type constants, and cv_bridge fails on them (KeyError: 16).
    "opencv-python-headless>=4.10,<5",
    "pillow>=9.2",
    "pyyaml>=5.4",
    "rich>=13",
    "safetensors>=0.4.3",
    # Decodes JPEG bit for bit as TensorFlow does, which the training data went through.
    "simplejpeg>=1.7",
    "typer>=0.12",
]

EXTRAS = {
    # Install torch first, from PyTorch's own page: the default wheel for Linux brings several GB of
    # CUDA libraries, and is the wrong one for a machine without an NVIDIA GPU.
    "model": [
        "accelerate>=1.1",
        "huggingface_hub>=1.0",
        "peft>=0.18",
        "tokenizers>=0.22",
        "torch>=2.6",
        "transformers>=5.0",
    ],
    "bags": ["rosbags>=0.11"],
    # LeRobot folders: Parquet tables, and videos (AV1 among them).
    "lerobot": ["av>=13", "pyarrow>=15"],
    # `openvla-ros replay --engine ray`.
    "ray": ["ray>=2.40"],
    "quant": ["bitsandbytes>=0.45"],
    # `openvla-ros monitor --foxglove`: a WebSocket server as one wheel, without dependencies.
    "foxglove": ["foxglove-sdk>=0.15"],
    # `openvla-ros bench --plots`.
    "plots": ["matplotlib>=3.7"],
    # `openvla-ros finetune`: events while it trains, curves at its end.
    "train": ["matplotlib>=3.7", "tensorboard>=2.16"],
    # The simulated cell. gym-aloha, whose meshes are the arm, allows mujoco below 3.9; robosuite
    # 1.5 fails with 4.0 (AssertionError in get_joint_qpos_addr). scripts/setup.bash installs
    # gym-aloha without its dependencies, because only its files are read.
    "sim": ["mujoco>=3.3,<3.9"],
    # `openvla-ros sim libero`, beside hf-libero, robosuite and bddl, which are installed without
    # their dependencies: they would replace OpenCV and bring wandb (docs/libero.md).
    "libero": [
        "cloudpickle>=2",
        "easydict>=1.10",
        "einops>=0.6",
        "future>=0.18.2",
        "gymnasium>=0.29",
        "h5py>=3",
        "jupytext>=1.14",
        "matplotlib>=3.7",
        "mujoco>=3.0,<3.9",  # hf-libero's own bound
        "networkx>=2.8",
        "numba>=0.57",
        "scipy>=1.10",
        "termcolor>=2",
    ],
    "test": [
        "hypothesis>=6.100",
        "mypy>=1.10",
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
        "types-PyYAML>=6",
        "websockets>=13",
    ],
    "dev": ["pre-commit>=3.5"],
}

setup(
    name="openvla_ros",
    version="0.1.0",
    description="OpenVLA on a real arm: camera and instruction in, twist and gripper command out",
    author="The openvla_ros authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["openvla_ros", "openvla_ros.*"]),
    package_data={"openvla_ros": ["resources/*", "resources/**/*", "py.typed"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": [f"{name} = {main}" for name, main in EXECUTABLES.items()]},
    zip_safe=False,
)
