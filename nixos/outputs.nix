# The files that `sandbox.extraConfig` has output go to, as { setting, path }.
{ lib }:
sandbox:
lib.concatMap (
  setting:
  lib.concatMap (
    value:
    let
      found = builtins.match "(file|append|truncate):(.*)" (toString value);
    in
    lib.optional (found != null) {
      inherit setting;
      path = lib.elemAt found 1;
    }
  ) (lib.toList (sandbox.extraConfig.${setting} or [ ]))
) [ "StandardOutput" "StandardError" ]
