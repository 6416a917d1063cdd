# Only on nodes whose tag role is gpu: overlay.yaml says so.
export GPU=yes
