"""The page of the report, as a Jinja template. A Python file, so that a change of it changes the step's key."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation: {{ "%.3f" | format(contents.figures.float.test_bits_per_byte) }} bits per byte</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>Evaluation</h1>
<p class="lead">
A mixture of {{ contents.expert_kinds | length }} experts per layer in {{ contents.layers | length }} layers,
{{ training.parameters | number }} parameters of which {{ training.active_parameters | number }} are active for a token,
trained on {{ training.corpus.train_documents | number }} documents ({{ training.corpus.train_bytes | bytes }}).
Scored on {{ contents.protocol.documents | number }} held-out documents: {{ contents.protocol.bytes | bytes }} of text,
{{ contents.protocol.tokens | number }} tokens, in windows of {{ contents.protocol.sequence_length }}.
</p>

<div class="cards">
{% for card in cards %}
<div class="card"><b>{{ card.value }}</b><span>{{ card.label }}</span><small>{{ card.note }}</small></div>
{% endfor %}
</div>

<div class="pair">
<section>
<h2>Loss while training</h2>
<p class="note">Nats per token; the dotted line is the test split, after the last step.</p>
{{ loss_curve }}
</section>
<section>
<h2>Loss by position</h2>
<p class="note">Test loss by how many tokens of context the model had; it falls as far as context helps.</p>
{{ position_curve }}
</section>
</div>

<section>
<h2>Load of the experts</h2>
<p class="note">
How many test tokens chose an expert, relative to an even share of its layer (1 is even). FFN experts compute; zero,
copy and constant experts cost next to nothing. A cross marks a dead expert: less than {{ dead_percent }} of an even
share.
</p>
{{ heat_map }}
<table>
<thead>
<tr>
<th>layer</th><th>experts per token</th><th>of them FFN</th><th>load CV</th><th>FFN load CV</th><th>load entropy</th>
<th>router entropy, nats</th><th>dead</th>
</tr>
</thead>
<tbody>
{% for layer in contents.layers %}
<tr>
<td>{{ layer.layer }}</td>
{% for name in ("experts_per_token", "ffn_experts_per_token", "load_cv", "ffn_load_cv", "entropy", "router_entropy") %}
<td>{{ "%.3f" | format(layer[name]) }}</td>
{% endfor %}
<td>{{ layer.dead_experts | length }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</section>

<section>
{% if models | length > 1 %}
<h2>Float and quantised</h2>
<p class="note">The same test text, windows and decoding for all; differences are to the float model.</p>
{% else %}
<h2>Figures</h2>
<p class="note">Of the test split, and of the samples below.</p>
{% endif %}
<table>
<thead>
<tr>
<th></th>
{% for model in models %}
<th>{{ model }}{% if not loop.first %} <small></small>{% endif %}</th>
{% endfor %}
</tr>
</thead>
<tbody>
{% for row in rows %}
<tr>
<td>{{ row.label }} <code>{{ row.name }}</code></td>
{% for cell in row.cells %}
<td>{{ cell.value }}{% if not loop.first %} <small class="{{ cell.tone }}">{{ cell.change }}</small>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</section>

<section>
<h2>Samples</h2>
<p class="note">Up to {{ settings.generation.max_new_tokens }} tokens after each prompt; seed {{ seed }}.</p>
{% for group in samples %}
{% if not loop.first %}
<details>
<summary>{{ group.model }}: {{ group.same }} of {{ group.total }} texts are those of the float model</summary>
{% endif %}
<div class="strategies">
{% for strategy in strategies %}
<div><h3>{{ strategy }}</h3><span>{{ strategy_notes[strategy] }}</span></div>
{% endfor %}
</div>
{% for text in group.texts %}
<div class="verse">
{% for continuation in text.continuations %}
<p><b>{{ text.prompt }}</b>{{ continuation }}</p>
{% endfor %}
</div>
{% endfor %}
{% if not loop.first %}
</details>
{% endif %}
{% endfor %}
</section>

<section>
<h2>Provenance</h2>
<p class="note">
What was measured, by the SHA-256 over its files; <code>manifest.json</code> of each folder lists them.
</p>
<table>
<thead><tr><th>input</th><th class="left">made by</th><th class="left">digest of the contents</th></tr></thead>
<tbody>
{% for name, record in contents.provenance.items() %}
<tr>
<td>{{ name }}</td><td class="left">ava {{ record.step }} {{ record.version }}</td>
<td class="digest"><code>{{ record.digest }}</code></td>
</tr>
{% endfor %}
</tbody>
</table>
</section>

<section>
<h2>What the figures mean</h2>
<dl>
<dt>bits per byte</dt>
<dd>negative log-likelihood of the whole split / ln 2 / bytes of its text; comparable between tokenizers</dd>
<dt>accuracy</dt>
<dd>share of tokens with the highest logit of all (top 5: one of the five highest); ties count against the model</dd>
<dt>load CV</dt>
<dd>standard deviation of the experts' loads over their mean, mean over layers; 0 is even</dd>
<dt>load entropy</dt>
<dd>entropy of the loads as a distribution over the layer's E experts / ln E, mean over layers; 1 is even</dd>
<dt>router entropy</dt>
<dd>mean entropy of the router's softmax for one token, in nats; low is decided</dd>
<dt>distinct 2-grams</dt>
<dd>different pairs of words over all pairs in the continuations, mean over the strategies</dd>
<dt>repeated 4-grams</dt>
<dd>share of a text's runs of four words that it had before, mean over texts and strategies</dd>
</dl>
</section>
</main>
</body>
</html>
"""
