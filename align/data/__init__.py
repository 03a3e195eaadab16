"""From files to token rows: formats → examples → tokens → positions → batch.

Where rows come from:
    sources: what stands behind `data.path`; files: what a source can do, and which endings there are.
    folders: which files of a folder hold rows; hub: saved data sets and the Hub's.
    row_files: how files are opened and named; text_kinds: their encoding, and what separates a table's columns.
    json_files: JSON Lines and lists; json_objects: one object under `.json`; table_files: CSV, Parquet, `datasets`.
    plain_text: text files, a document each.

A raw row as an `Example`:
    formats: the layout, by the columns; layout_columns: the columns that layouts have.
    renaming: `data.columns`; near_names: what a column of another name may be meant as.
    columns: checked access to a row's columns; contents: their values as text; stored_columns: those stored as text.
    messages: chat messages beyond role and content; turns: prompt and answers, of one turn or several.
    context_rows, instruction_rows, implicit_rows: rows with a context, an instruction, and without a prompt.
    released: rows that were released as tokens; text_rows: documents, cut into pieces.
    piece_rows: rows that are laid out in pieces, of which parts are scored.
    labels: single answers that are good or bad; numbers: numbers of a row that reach the loss.
    examples: what a row is before and after it is tokenised.

What a chat template makes of it:
    template: text in fragments that say whose it is, and plain text; chat_template: the same through a chat template.
    template_file: settings of templates; row_messages: a row's messages as a template is given them.
    row_template: one row under a template; conversation: what was written, and whose each stretch is.
    rendering: the template at work; marks: how it is known where it has written what; calls: tool calls for it.
    answer_places: where answers begin and end; thinking: their reasoning; reasoning_forms: its forms.

Tokens:
    tokens: an `Example` as tokens; encoding: fragments as ids; spans: which stretches lie in others.
    weighing: what an answer's tokens weigh; weighers: by spans that rows bring, by ranks.
    cuts: what goes of a context that is too long; vocabulary: ids against the model's.
    positions: where tokens stand; placements: the ways to say so; positions_of_model: those that a model can read.

All rows together:
    dataset: what training is given; held_out: what is not; mixture: `data.mix`; orders: `data.order`.
    settings: `data` and `positions`; position_settings: the latter, read.
    build: tokenises and caches; row_builder: one row of that; stored_rows: what is stored of it.
    stretches: the rows between two places, from raw to stored; unrelated: answers to other prompts behind a row's own.
    totals: counts, digest, whole columns.

What is said of rows:
    faults: why one row cannot be used, as an error; bad_rows: what `data.bad_rows` does about all of those.
    checks: what `align inspect` finds in rows that can be used; provenance: leaks, by what pipelines record.
    notices: what commands say before they load a model; unread: columns that nobody reads.
    answer_scores: scores that contradict a pair; length_words: whether a user or the window has set a length.
    describe: a row by its parts; display: rows, counts and findings on the screen.
"""
