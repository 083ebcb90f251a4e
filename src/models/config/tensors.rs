//! The tensors that a model wants from its checkpoint, in checkpoint spelling.

use super::{AudioConfig, ModelConfig, TextConfig, VisionConfig};

/// Part of a model that a tensor belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelPart {
    Text,
    Vision,
    Projector,
    AudioEncoder,
    AudioAdapter,
}

impl ModelPart {
    pub const ALL: [ModelPart; 5] = [
        ModelPart::Text,
        ModelPart::Vision,
        ModelPart::Projector,
        ModelPart::AudioEncoder,
        ModelPart::AudioAdapter,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            ModelPart::Text => "language model",
            ModelPart::Vision => "vision tower",
            ModelPart::Projector => "projector",
            ModelPart::AudioEncoder => "audio encoder",
            ModelPart::AudioAdapter => "audio adapter",
        }
    }
}

/// A tensor that a model wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    pub part: ModelPart,
    pub name: String,
    pub shape: Vec<usize>,
}

struct List {
    part: ModelPart,
    all: Vec<Expected>,
}

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.all.push(Expected { part: self.part, name: name.into(), shape: shape.to_vec() });
    }

    /// `[n, k]` weight and `[n]` bias.
    fn linear(&mut self, name: &str, n: usize, k: usize) {
        self.with_bias(name, &[n, k]);
    }

    fn norm(&mut self, name: &str, c: usize) {
        self.with_bias(name, &[c]);
    }

    fn with_bias(&mut self, name: &str, weight: &[usize]) {
        self.add(format!("{name}.weight"), weight);
        self.add(format!("{name}.bias"), &weight[..1]);
    }
}

/// Every tensor of the model, part by part.
pub fn expected_tensors(config: &ModelConfig) -> Vec<Expected> {
    let mut list = List { part: ModelPart::Text, all: Vec::new() };
    text(&mut list, &config.text);
    if let Some(v) = &config.vision {
        vision(&mut list, v, config.text.hidden_size);
    }
    if let Some(a) = &config.audio {
        audio(&mut list, a, config.text.hidden_size);
    }
    list.all
}

fn text(list: &mut List, t: &TextConfig) {
    let (c, f) = (t.hidden_size, t.intermediate_size);
    let (q, kv) = (t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim);
    list.add("model.embed_tokens.weight", &[t.vocab_size, c]);
    for n in 0..t.num_hidden_layers {
        let at = |what: &str| format!("model.layers.{n}.{what}");
        list.add(at("input_layernorm.weight"), &[c]);
        list.linear(&at("self_attn.q_proj"), q, c);
        list.linear(&at("self_attn.k_proj"), kv, c);
        list.linear(&at("self_attn.v_proj"), kv, c);
        list.add(at("self_attn.o_proj.weight"), &[c, q]);
        list.add(at("post_attention_layernorm.weight"), &[c]);
        list.add(at("mlp.gate_proj.weight"), &[f, c]);
        list.add(at("mlp.up_proj.weight"), &[f, c]);
        list.add(at("mlp.down_proj.weight"), &[c, f]);
    }
    list.add("model.norm.weight", &[c]);
    if !t.tie_word_embeddings {
        list.add("lm_head.weight", &[t.vocab_size, c]);
    }
}

fn vision(list: &mut List, v: &VisionConfig, out: usize) {
    const TOWER: &str = "model.vision_tower.vision_tower";
    let (c, f, p) = (v.hidden_size, v.intermediate_size, v.patch_size);
    let patches = (v.image_size / p).pow(2);
    list.part = ModelPart::Vision;
    list.add(format!("{TOWER}.embeddings.class_embedding"), &[1, 1, c]);
    list.add(format!("{TOWER}.embeddings.position_embedding"), &[1, patches + 1, c]);
    list.with_bias(&format!("{TOWER}.embeddings.patch_embedding"), &[c, 3, p, p]);
    for n in 0..v.num_hidden_layers {
        let at = |what: &str| format!("{TOWER}.encoder.layers.{n}.{what}");
        list.norm(&at("norm1"), c);
        list.linear(&at("attn.qkv"), 3 * c, c);
        list.linear(&at("attn.proj"), c, c);
        list.add(at("ls1"), &[c]);
        list.norm(&at("norm2"), c);
        list.linear(&at("mlp.fc1"), f, c);
        list.linear(&at("mlp.fc2"), c, f);
        list.add(at("ls2"), &[c]);
    }
    list.part = ModelPart::Projector;
    list.linear("model.mm_projector.0", out, 4 * c);
    list.linear("model.mm_projector.2", out, out);
}

fn audio(list: &mut List, a: &AudioConfig, out: usize) {
    const AUDIO: &str = "model.audio_encoder";
    let (c, f) = (a.hidden_size, a.intermediate_size);
    let half = |bands: usize| (bands - 3) / 2 + 1;
    list.part = ModelPart::AudioEncoder;
    let at = |what: &str| format!("{AUDIO}.encoder.{what}");
    list.add(at("global_cmvn.mean"), &[a.input_dim]);
    list.add(at("global_cmvn.istd"), &[a.input_dim]);
    list.with_bias(&at("enc.0.core.conv.0"), &[c, 1, 3, 3]);
    list.with_bias(&at("enc.0.core.conv.2"), &[c, c, 3, 3]);
    list.linear(&at("enc.0.core.out.0"), c, c * half(half(a.input_dim)));
    list.linear(&at("enc.1.embed.0"), c, c);
    list.norm(&at("enc.1.embed.1"), c);
    for n in 0..a.num_hidden_layers {
        let at = |what: &str| at(&format!("enc.1.encoders.{n}.{what}"));
        list.norm(&at("norm1"), c);
        for which in ["linear_q", "linear_k", "linear_v", "linear_out"] {
            list.linear(&at(&format!("self_attn.{which}")), c, c);
        }
        list.add(at("self_attn.linear_pos.weight"), &[c, c]);
        list.add(at("self_attn.pos_bias_u"), &[a.num_attention_heads, c / a.num_attention_heads]);
        list.add(at("self_attn.pos_bias_v"), &[a.num_attention_heads, c / a.num_attention_heads]);
        list.norm(&at("norm2"), c);
        list.linear(&at("feed_forward.w_1"), f, c);
        list.linear(&at("feed_forward.w_2"), c, f);
    }
    list.norm(&at("enc.1.after_norm"), c);

    list.part = ModelPart::AudioAdapter;
    let at = |what: &str| format!("{AUDIO}.adpter.{what}");
    list.with_bias(&at("conv1d2"), &[2 * c, c, a.adapter_kernel_size]);
    list.norm(&at("bn2"), 2 * c);
    list.linear(&at("project"), out, 2 * c);
    if a.prompt_rows > 0 {
        list.add(format!("{AUDIO}.prompt_embeddings.weight"), &[a.prompt_rows, out]);
    }
}
