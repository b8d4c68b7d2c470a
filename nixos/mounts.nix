# What `sandbox.extraConfig` mounts, as { setting, source, destination, optional }. systemd takes several in one string, quotes, and its
# own words for directories: what is read here is rather a place too many than one too few.
{ lib }:
let
  inherit (lib) concatMap filter isString;

  expanded = lib.replaceStrings [ "\"" "'" "\\" "%t" "%E" "%S" ] [ "" "" "" "/run" "/etc" "/var/lib" ];
  words = text: filter (word: isString word && word != "") (builtins.split "[[:space:]]+" text);
  # As systemd simplifies it.
  simple =
    path: "/" + lib.concatStringsSep "/" (filter (part: part != "" && part != ".") (lib.splitString "/" path));

  # -SOURCE:DESTINATION:OPTIONS
  mount =
    word:
    let
      parts = lib.splitString ":" (lib.removePrefix "-" word);
      source = lib.head parts;
      destination = if lib.length parts > 1 then lib.elemAt parts 1 else source;
    in
    {
      source = simple source;
      destination = simple destination;
      # It may be missing.
      optional = lib.hasPrefix "-" word;
    };
in
sandbox:
concatMap (
  setting:
  concatMap (text: map (word: { inherit setting; } // mount word) (words (expanded text))) (
    map toString (lib.toList (sandbox.extraConfig.${setting} or [ ]))
  )
) [ "BindPaths" "BindReadOnlyPaths" ]
