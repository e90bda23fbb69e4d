//! `mitose-image`: builds images without a daemon, for development and for the lab.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use images::{
    Builder, BuilderConfig, CancelToken, DebianRecipe, Image, ImportRequest, TinyRecipe, Watch,
};

const USAGE: &str = "\
usage: mitose-image [--images DIR] [--cache DIR] [--agent FILE] [--mirror URI] COMMAND

  tiny   [--name N] [--suite trixie|bookworm]
  debian [--name N] [--suite trixie|bookworm] [--include a,b] [--init agent|systemd]
         [--disk-bytes N]
  import FILE --name N [--suite trixie|bookworm] [--disk-bytes N]
         [--root-partition N]
  list
  remove NAME";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mitose-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Command-line words taken apart: options are removed as they are asked for.
struct Words(Vec<String>);

impl Words {
    fn option(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.0.iter().position(|word| word == name) else {
            return Ok(None);
        };
        self.0.remove(at);
        if at == self.0.len() {
            bail!("{name} needs a value\n{USAGE}");
        }
        Ok(Some(self.0.remove(at)))
    }

    fn parsed<T>(&mut self, name: &str) -> Result<Option<T>>
    where
        T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let Some(text) = self.option(name)? else {
            return Ok(None);
        };
        Ok(Some(
            text.parse().with_context(|| format!("{name} {text}"))?,
        ))
    }

    fn finish(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(word) => bail!("unknown argument {word:?}\n{USAGE}"),
        }
    }
}

fn run(args: Vec<String>) -> Result<()> {
    let mut words = Words(args);
    let path =
        |given: Option<String>, default: &str| PathBuf::from(given.unwrap_or(default.into()));
    let config = BuilderConfig {
        images: path(words.option("--images")?, ".mitose/images"),
        cache: path(words.option("--cache")?, ".mitose/cache"),
        agent: path(
            words.option("--agent")?,
            "target/guest/x86_64-unknown-linux-gnu/guest/mitose-guest",
        ),
        mirror: words.option("--mirror")?,
    };
    let report = |text: &str, fraction: f32| eprintln!("{:3.0} % {text}", fraction * 100.0);
    let builder = Builder::new(config, Watch::new(report, CancelToken::default()))?;
    if words.0.is_empty() {
        bail!("no command\n{USAGE}");
    }
    match words.0.remove(0).as_str() {
        "tiny" => {
            let mut recipe = TinyRecipe::default();
            recipe.name = words.option("--name")?.unwrap_or(recipe.name);
            recipe.suite = words.parsed("--suite")?.unwrap_or_default();
            words.finish()?;
            print(&builder.tiny(&recipe)?)
        }
        "debian" => {
            let mut recipe = DebianRecipe::default();
            recipe.name = words.option("--name")?.unwrap_or(recipe.name);
            recipe.suite = words.parsed("--suite")?.unwrap_or_default();
            recipe.init = words.parsed("--init")?.unwrap_or_default();
            recipe.disk_bytes = words.parsed("--disk-bytes")?;
            let include = words.option("--include")?.unwrap_or_default();
            recipe.include = include
                .split(',')
                .filter(|p| !p.is_empty())
                .map(str::to_owned)
                .collect();
            words.finish()?;
            print(&builder.debian(&recipe)?)
        }
        "import" => {
            let name = words.option("--name")?.context("import needs --name")?;
            let suite = words.parsed("--suite")?.unwrap_or_default();
            let disk_bytes = words.parsed("--disk-bytes")?;
            let root_partition = words.parsed("--root-partition")?;
            let file = words.0.pop().context("import needs a file")?.into();
            words.finish()?;
            print(&builder.import(&ImportRequest {
                file,
                name,
                suite,
                disk_bytes,
                root_partition,
            })?)
        }
        "list" => {
            words.finish()?;
            builder.store().list()?.iter().try_for_each(print)
        }
        "remove" => {
            let name = words.0.pop().context("remove needs a name")?;
            words.finish()?;
            Ok(builder.store().remove(&name)?)
        }
        other => bail!("unknown command {other:?}\n{USAGE}"),
    }
}

fn print(image: &Image) -> Result<()> {
    println!("{}", serde_json::to_string(&image.manifest)?);
    Ok(())
}
