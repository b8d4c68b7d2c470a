# What is mounted into an instance is nowhere that an agent may put a link in its place.
{ config, lib, ... }:
let
  inherit (lib) concatMap elem mapAttrsToList optional;
  instances = import ./instances.nix { inherit config lib; };
  inherit (instances) option within;
  paths = import ./paths.nix { inherit config lib; };

  # Strictly inside: in what is around a place, agents change nothing.
  inside = path: place: path != place && within path place;

  # Of these assertions.nix tells, for another reason.
  own = [ "directory" "stateDir" ];
  told =
    path: place:
    let
      settings = own ++ lib.optionals (path.name != place.name) [ "sandbox.readWritePaths" "sandbox.readOnlyPaths" ];
    in
    elem "stateDir" [ path.setting place.setting ]
    && elem path.setting settings
    && elem place.setting settings;

  remedy =
    path: place:
    if path.name != place.name then
      "Set them apart, or give both the whole of ${place.path}"
    else if path.setting == "sandbox.readOnlyPaths" then
      "The agent sees it there anyway: remove it; to keep the agent from changing it, use ${option path.name "sandbox.extraConfig"}.ReadOnlyPaths"
    else if path.setting == "directory" then
      "Remove ${place.path}, or make it the `directory`"
    else
      "Put it where only root writes, or remove it where the agent sees it anyway";

  ofPath =
    path:
    map (place: {
      assertion = false;
      message = "${option path.name path.setting}: ${path.path} is inside ${option place.name place.setting} (${place.path}), which an agent may change: it could put a link in its place, and at the next start any directory of the host would be mounted there. ${remedy path place}.";
    }) (lib.filter (place: inside path.path place.path && !told path place) paths.writable);

  # systemd looks for the place of a mount inside the sandbox, where a link of the agent's leads to what `attach` is.
  ofDestination =
    path:
    concatMap (
      place:
      optional (place.name == path.name && inside path.path place.path) {
        assertion = false;
        message = "${option path.name path.setting}: the mount at ${path.path} is inside ${option place.name place.setting} (${place.path}), which the agent may change: it could put a link in its place, and have it mounted over anything in its sandbox. Choose a destination of its own.";
      }
    ) paths.writable;
in
{
  assertions = concatMap lib.id (
    mapAttrsToList (
      name: instance:
      concatMap ofPath (paths.mounted name instance)
      ++ concatMap ofDestination (paths.destinations name instance)
    ) instances.enabled
  );
}
