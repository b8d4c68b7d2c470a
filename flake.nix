{
  description = "Confines headless opencode servers by eBPF programs on their units' cgroups";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      eachSystem =
        perSystem:
        lib.genAttrs systems (system: perSystem (nixpkgs.legacyPackages.${system}.extend self.overlays.default));
    in
    {
      overlays.default = import ./nixos/overlay.nix;

      nixosModules = {
        default = self.nixosModules.opencode;
        opencode = ./nixos;
      };

      # Copied by `nix flake init`: the hosts that the tests evaluate and start.
      templates.default = {
        path = ./nixos/examples;
        description = "Hosts with opencode servers: one, ten, and one with many agents";
        welcomeText = ''
          Keep the host in `flake.nix` that is closest to yours, say there where you have opencode-egress from, and put the
          `hardware-configuration.nix` of your machine beside it.
        '';
      };

      # Without packages: mkConfig takes no configuration that names one. The overlay's does.
      lib.opencode = import ./nixos/opencode-json { inherit lib; };

      packages = eachSystem (pkgs: {
        default = pkgs.opencode-egress;
        inherit (pkgs) opencode-egress;
      });

      checks = eachSystem (
        pkgs:
        let
          inherit (pkgs.stdenv.hostPlatform) system;
          # Succeeds when there is nothing in the list.
          evaluation =
            name: failures:
            pkgs.runCommand name { failures = builtins.toJSON failures; } ''
              [ "$failures" = "[]" ] || { echo "$failures" >&2; exit 1; }
              touch $out
            '';
        in
        {
          inherit (pkgs) opencode-egress;
          opencode-json = evaluation "opencode-json" (
            import ./nixos/tests/opencode-json/checks.nix { inherit lib; }
          );
          # On NixOS itself, and on the stub that scenarios are rendered by.
          module = evaluation "module" (
            import ./nixos/tests/checks.nix {
              inherit lib;
              evaluate = import ./nixos/tests/nixos.nix {
                inherit nixpkgs;
                localSystem = system;
              };
              cross = import ./nixos/tests/nixos.nix {
                inherit nixpkgs;
                localSystem = system;
                crossSystem = lib.head (lib.remove system systems);
              };
            }
          );
          module-on-stub = evaluation "module-on-stub" (import ./nixos/tests/checks.nix { inherit lib; });
        }
        // lib.optionalAttrs (system == "x86_64-linux") (
          import ./vm-tests/nixos-test.nix {
            inherit pkgs;
            module = self.nixosModules.default;
          }
        )
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ pkgs.opencode-egress ];
          packages = [
            pkgs.clippy
            pkgs.rustfmt
          ];
          OPENCODE_EGRESS_RUSTC = lib.getExe' pkgs.opencode-egress.compiler "rustc";
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
