# Units of a host with one instance.
{ lib, host }:
let
  # What a unit is made of.
  unit =
    name: config:
    lib.getAttrs [
      "after"
      "environment"
      "path"
      "reloadTriggers"
      "requires"
      "restartTriggers"
      "serviceConfig"
      "stopIfChanged"
      "unitConfig"
      "wantedBy"
      "wants"
    ] config.systemd.services.${name};
in
rec {
  inherit unit;
  server = unit "opencode-a";
  setup = unit "opencode-a-setup";
  settings = instance: (server (host.one instance)).serviceConfig;
}
