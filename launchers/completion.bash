# Completion of `align` in bash: `source launchers/completion.bash`.
#
# The first word after `align` is a command; what follows is Hydra's business, which is asked for it. Hydra's own rule
# (`align train -sc install=bash`) would ask `align` itself, which knows commands only.

_align_commands="train synthesize evaluate rounds inspect verify plan report export merge"

_align() {
  local line="${COMP_LINE:0:COMP_POINT}" words
  read -r -a words <<<"$line"
  COMPREPLY=()
  if [ "${#words[@]}" -le 1 ] || { [ "${#words[@]}" -eq 2 ] && [[ "$line" != *" " ]]; }; then
    mapfile -t COMPREPLY < <(compgen -W "$_align_commands" -- "${words[1]:-}")
    COMPREPLY=("${COMPREPLY[@]/%/ }")
    return
  fi
  local program="${words[0]}" command="${words[1]}" word="" rest
  [[ " $_align_commands " == *" $command "* ]] || return
  [[ "$line" == *" " ]] || word="${words[${#words[@]} - 1]}"
  # Hydra strips the program's name off the line, and expects keys behind it.
  rest="${line#*"$command"}"
  local choices
  choices=$(COMP_LINE="$program$rest" COMP_POINT="$COMP_POINT" "$program" "$command" -sc query=bash 2>/dev/null)
  mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
}

# A key with its value is one word: `=` and `:` no longer break words, in this whole shell, as under Hydra's own rule.
COMP_WORDBREAKS="${COMP_WORDBREAKS//=/}"
COMP_WORDBREAKS="${COMP_WORDBREAKS//:/}"
complete -o nospace -o default -F _align align
