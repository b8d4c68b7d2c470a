# What nixpkgs gets: the package, and `lib.opencode` for opencode.json.
final: prev: {
  opencode-egress = final.callPackage ./package.nix { };

  lib = prev.lib.extend (
    lib: _: {
      opencode =
        import ./opencode-json {
          inherit lib;
          inherit (final) writeText;
        }
        // rec {
          wrapOpencode = import ./wrap-opencode.nix final;

          # As albertov/opencode-nix has it.
          wrapOpenCode =
            {
              modules,
              opencode ? final.opencode,
              name ? "opencode",
            }:
            wrapOpencode {
              inherit name;
              config = modules;
              package = opencode;
            };
        };
    }
  );
}
