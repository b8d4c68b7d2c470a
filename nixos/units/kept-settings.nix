# Settings that `sandbox.extraConfig` cannot change under `networkIsolation`.
[
  # They would run before the policy is attached, or when it could not be.
  "ExecCondition"
  "ExecStartPre"
  "ExecStopPost"
  # It would run what comes after the start as root.
  "PermissionsStartOnly"
  # `attach` is root's, and would load what they name.
  "EnvironmentFile"
  "UnsetEnvironment"
  # They would move the unit's cgroup, or hand it to somebody who can leave it.
  "Delegate"
  "DelegateSubgroup"
  "PAMName"
  "ProtectControlGroups"
  "Slice"
  # Without the empty root the host's sockets are there, and with them whoever has a network. Images could have anything in
  # them, in the place of `attach` too.
  "ExtensionDirectories"
  "ExtensionImages"
  "MountImages"
  "RootDirectory"
  "RootImage"
  "TemporaryFileSystem"
  # The second lock is the user's, in the host's network namespace.
  "DynamicUser"
  "NetworkNamespacePath"
  "User"
  # With these there are sockets below IP, of other families, or from outside the cgroup: 32-bit programs make sockets by a call
  # that RestrictAddressFamilies= cannot look into, and the store would keep sockets for the next start.
  "AmbientCapabilities"
  "CapabilityBoundingSet"
  "FileDescriptorStoreMax"
  "NoNewPrivileges"
  "OpenFile"
  "RestrictAddressFamilies"
  "Sockets"
  "StandardInput"
  "SystemCallArchitectures"
]
