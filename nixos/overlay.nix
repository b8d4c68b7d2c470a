# What nixpkgs gets: the package, and `lib.opencode` for opencode.json.
final: prev: {
  opencode-egress = final.callPackage ./package.nix { };

  lib = prev.lib.extend (
    lib: _: {
      opencode = import ./opencode-json {
        inherit lib;
        inherit (final) writeText;
      } // {
        wrapOpencode = import ./wrap-opencode.nix final;
      };
    }
  );
}
