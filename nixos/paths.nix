# Places of the host that systemd follows as root to mount them into an instance, and those that agents may change. An agent that may change
# a directory on the way to the former can put a link in its place, to any directory of the host.
{ config, lib }:
let
  inherit (lib) concatMap hasInfix hasPrefix mapAttrsToList optional;
  instances = import ./instances.nix { inherit config lib; };

  at = name: setting: path: {
    inherit name setting path;
    # With `-` before it, it may be missing.
    optional = false;
  };
  each = name: setting: map (at name setting);
  own = name: instance: [
    (at name "directory" instance.directory)
    (at name "stateDir" instance.stateDir)
  ] ++ each name "sandbox.readWritePaths" instance.sandbox.readWritePaths;

  # Declared files that stay where they are. A string that is no absolute path is the text itself.
  outside =
    value:
    lib.isString value
    && hasPrefix "/" value
    && !hasInfix "\n" value
    && !hasPrefix "${builtins.storeDir}/" value;
  declared =
    name: instance: setting: value:
    optional (outside value) (at name setting value);

  mounts = instance: import ./mounts.nix { inherit lib; } instance.sandbox;
  ofMount =
    name: mount: path:
    at name "sandbox.extraConfig.${mount.setting}" path // { optional = mount.optional; };
in
{
  # What is mounted into an instance, as { name, setting, path, optional }.
  mounted =
    name: instance:
    own name instance
    ++ each name "sandbox.readOnlyPaths" instance.sandbox.readOnlyPaths
    ++ each name "sandbox.unixSockets.allow" instance.sandbox.unixSockets.allow
    ++ declared name instance "configFile" instance.configFile
    ++ concatMap (
      kind: concatMap lib.id (mapAttrsToList (key: declared name instance "${kind}.${key}") instance.${kind})
    ) [ "agents" "commands" "skills" ]
    ++ map (mount: ofMount name mount mount.source) (mounts instance);

  # Where else than there mounts of an instance's own are seen. systemd follows these inside the sandbox.
  destinations =
    name: instance:
    map (mount: ofMount name mount mount.destination) (
      lib.filter (mount: mount.source != mount.destination) (mounts instance)
    );

  # What agents may change, of every instance, likewise.
  writable = concatMap lib.id (
    mapAttrsToList (
      name: instance:
      own name instance
      ++ map (mount: ofMount name mount mount.source) (
        lib.filter (mount: mount.setting == "BindPaths") (mounts instance)
      )
    ) instances.enabled
  );
}
