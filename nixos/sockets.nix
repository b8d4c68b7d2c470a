# Unix sockets that hand the network out: somebody else, in another cgroup, does the talking.
{ lib }:
let
  owners = {
    "/nix/var/nix/daemon-socket" = "the Nix daemon";
    "/nix/var/nix/gc-socket" = "the Nix daemon";
    "/run/dbus" = "services on D-Bus, systemd among them,";
    "/run/systemd" = "systemd";
    "/run/docker.sock" = "Docker";
    "/run/docker" = "Docker";
    "/run/podman" = "Podman";
    "/run/containerd" = "containerd";
    "/run/crio" = "CRI-O";
    "/run/libvirt" = "libvirt";
    "/run/incus" = "Incus";
    "/run/lxd" = "LXD";
    "/run/nscd" = "nscd, which resolves names,";
    "/run/avahi-daemon" = "Avahi";
    "/run/user" = "services of a user's session";
    "/run/opencode-egress" = "opencode-egress";
    "/var/lib/lxd" = "LXD";
    "/var/lib/incus" = "Incus";
  };
  # /var/run is /run.
  real = path: if lib.hasPrefix "/var/run/" "${path}/" then lib.removePrefix "/var" path else path;
  within = inner: outer: lib.hasPrefix "${lib.removeSuffix "/" outer}/" "${inner}/";

  # Whoever answers at the path, or somewhere below it; null when nobody that is known does.
  owner =
    path:
    let
      here = real path;
      found = lib.filter (known: within here known || within known here) (lib.attrNames owners);
    in
    if found == [ ] then null else owners.${lib.head found};
in
# [ { setting, path, owner } ]
sandbox:
lib.concatMap
  (
    { setting, paths }:
    map (path: {
      inherit setting path;
      owner = owner path;
    }) paths
  )
  (
    [
      {
        setting = "sandbox.unixSockets.allow";
        paths = sandbox.unixSockets.allow;
      }
      {
        setting = "sandbox.readWritePaths";
        paths = sandbox.readWritePaths;
      }
      {
        setting = "sandbox.readOnlyPaths";
        paths = sandbox.readOnlyPaths;
      }
    ]
    ++ map (mount: {
      setting = "sandbox.extraConfig.${mount.setting}";
      paths = [ mount.source ];
    }) (import ./mounts.nix { inherit lib; } sandbox)
    # A file that output goes to is connected to where it is a socket.
    ++ map (output: {
      setting = "sandbox.extraConfig.${output.setting}";
      paths = [ output.path ];
    }) (import ./outputs.nix { inherit lib; } sandbox)
  )
